// SPDX-License-Identifier: LGPL-3.0-or-later
/* The trees that are walked, and what opendir(3) and lstat(2) say of them. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "walk_driver.h"

int tree = -1;
struct set still;

void set_add(struct set *set, uint64_t key)
{
	size_t i = key % (2 * MOST_ENTRIES);

	while (set->keys[i] && set->keys[i] != key)
		i = (i + 1) % (2 * MOST_ENTRIES);
	set->count += !set->keys[i];
	set->keys[i] = key;
	CHECK(set->count < MOST_ENTRIES);
}

bool set_has(const struct set *set, uint64_t key)
{
	size_t i = key % (2 * MOST_ENTRIES);

	while (set->keys[i] && set->keys[i] != key)
		i = (i + 1) % (2 * MOST_ENTRIES);
	return set->keys[i];
}

void make_file(int at, const char *name, size_t size)
{
	int fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)size) && !close(fd));
}

int make_dir(int at, const char *name)
{
	int fd;

	CHECK(!mkdirat(at, name, 0700));
	fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static void make_files(int at, int count)
{
	char name[16];

	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "file%d", i);
		make_file(at, name, (size_t)i);
	}
}

/* A directory in a directory and so on, with a file in each. */
static void make_chain(int at, int levels)
{
	int dir = make_dir(at, "chain");

	for (int i = 0; i < levels; i++) {
		int next = make_dir(dir, "link");

		make_file(dir, "file", 3);
		close(dir);
		dir = next;
	}
	close(dir);
}

/* Where one comes back to each directory more than once. */
static void make_bush(int at, const char *name, int levels)
{
	int dir = make_dir(at, name);

	if (levels) {
		make_bush(dir, "left", levels - 1);
		make_file(dir, "middle", 5);
		make_bush(dir, "right", levels - 1);
	}
	close(dir);
}

static void make_oddities(int at)
{
	int locked = make_dir(at, "locked");
	char name[256] = { 0 };

	make_files(locked, 2);
	CHECK(!fchmod(locked, 0) && !close(locked));
	memset(name, '\xe9', sizeof(name) - 1);
	make_file(at, name, 0);
	CHECK(!mkfifoat(at, "fifo", 0600));
	CHECK(!symlinkat(".", at, "symlink") && !symlinkat("nowhere", at, "dangling"));
	CHECK(!linkat(at, name, at, "hard link", 0));
}

static void remember(int at)
{
	int fd = openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fdopendir(fd);
	struct dirent *each;

	CHECK(dir);
	while ((each = readdir(dir)))
		if (strcmp(each->d_name, ".") && strcmp(each->d_name, ".."))
			set_add(&still, each->d_ino);
	closedir(dir);
}

void make_big_tree(int at)
{
	char name[16];
	int dir, inner;

	dir = make_dir(at, "wide");
	make_files(dir, 250);
	remember(dir);
	close(dir);
	for (int i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "sub%d", i);
		dir = make_dir(at, name);
		make_files(dir, 2 * i);
		inner = make_dir(dir, "inner");
		make_files(inner, 3);
		close(make_dir(inner, "empty"));
		make_files(inner, 0);
		close(inner);
		close(dir);
	}
	make_chain(at, 40);
	make_bush(at, "bush", 5);
	make_oddities(at);
	make_files(at, 4);
	remember(at);
}

/* So small that each of its system calls can be made to fail in turn. */
void make_small_tree(int at)
{
	int dir = make_dir(at, "one");

	make_files(dir, 2);
	close(dir);
	make_chain(at, 5);
	make_files(at, 3);
	CHECK(!mkfifoat(at, "fifo", 0600));
}

void tally_add(struct tally *tally, uint64_t ino, mode_t mode, uint64_t size, uint32_t depth)
{
	uint64_t mixed = (ino + 0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd + depth;

	tally->entries++;
	tally->dirs += S_ISDIR(mode);
	tally->bytes += S_ISREG(mode) ? size : 0;
	tally->identities += (mixed ^ mixed >> 31) * 0xc4ceb9fe1a85ec53;
}

static void count_dir(int fd, uint32_t depth, bool symlinks, const struct set *skipped,
		      struct tally *tally)
{
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *each;
	struct stat st;

	if (!dir)
		return;
	while ((each = readdir(dir))) {
		if (!strcmp(each->d_name, ".") || !strcmp(each->d_name, ".."))
			continue;
		CHECK(!fstatat(fd, each->d_name, &st, AT_SYMLINK_NOFOLLOW));
		if (S_ISLNK(st.st_mode) && !symlinks)
			continue;
		tally_add(tally, st.st_ino, st.st_mode, (uint64_t)st.st_size, depth);
		if (S_ISDIR(st.st_mode) && !(skipped && set_has(skipped, st.st_ino)))
			count_dir(openat(fd, each->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
				  depth + 1, symlinks, skipped, tally);
	}
	closedir(dir);
}

struct tally counted(bool symlinks, const struct set *skipped)
{
	struct tally tally = { 0 };

	count_dir(openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), 1, symlinks, skipped, &tally);
	return tally;
}

void check_tally(const struct tally *got, const struct tally *expected)
{
	CHECK(got->entries == expected->entries);
	CHECK(got->dirs == expected->dirs);
	CHECK(got->bytes == expected->bytes);
	CHECK(got->identities == expected->identities);
}

bool has_mark(int dir, const unsigned char *mark)
{
	unsigned char value[MARK_SIZE];

	return fgetxattr(dir, MARK_NAME, value, sizeof(value)) == MARK_SIZE &&
	       !memcmp(value, mark, MARK_SIZE);
}

static void check_marks_in(int fd, const struct set *consumed, const struct set *skipped,
			   const unsigned char *mark, bool complete, bool above)
{
	const bool here = has_mark(fd, mark);
	DIR *dir = fdopendir(fd);
	struct dirent *each;
	struct stat st;

	CHECK(dir && (here || !complete));
	while ((each = readdir(dir))) {
		if (!strcmp(each->d_name, ".") || !strcmp(each->d_name, ".."))
			continue;
		CHECK(!fstatat(fd, each->d_name, &st, AT_SYMLINK_NOFOLLOW));
		CHECK(!(here || above) || S_ISLNK(st.st_mode) || set_has(consumed, st.st_ino));
		if (S_ISDIR(st.st_mode)) {
			const bool left_out = set_has(skipped, st.st_ino);
			int child = openat(fd, each->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

			if (left_out)
				CHECK(child < 0 || !has_mark(child, mark));
			if (left_out || child < 0)
				close(child);
			else
				check_marks_in(child, consumed, skipped, mark, complete, here || above);
		}
	}
	closedir(dir);
}

/*
 * Whatever is below a marked directory was consumed, or is below a skipped one, which has no mark.
 * After a complete walk all others have theirs.
 */
void check_marks(const struct set *consumed, const struct set *skipped, const unsigned char *mark,
		 bool complete)
{
	check_marks_in(openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), consumed, skipped, mark,
		       complete, false);
}

bool marks_work(void)
{
	return !fsetxattr(tree, MARK_NAME, "", 0, 0);
}

size_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	size_t count = 0;

	CHECK(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/*
 * Threads that were left behind end, and close what they have, whenever they come to it. While they
 * do, the directory may tell less than there is.
 */
void check_fds(size_t before)
{
	int settled = 0;

	for (int i = 0; i < 5000 && settled < 3; i++) {
		settled = open_fds() == before ? settled + 1 : 0;
		usleep(settled ? 100 : 1000);
	}
	CHECK(settled == 3);
}
