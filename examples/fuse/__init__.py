# SPDX-License-Identifier: LGPL-3.0-or-later
"""Filesystems, each a program of its own; ``truenas-os fuse NAME`` runs them as well."""
