# SPDX-License-Identifier: LGPL-3.0-or-later
"""What the site takes from the code: a page says ``<!-- generated: KIND ARGUMENT -->``.

The reference of a module, the constants, and what ``--help`` prints become Markdown before the page
is parsed, so nothing has to be listed by hand when a name, a constant or a command is added.
"""

import argparse
import enum
import importlib
import inspect
import os
import pkgutil
import re
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

import truenas_os
from truenas_os import blocking, cli, fuse
from truenas_os.blocking import flags

_MARK = re.compile(r"<!-- generated: (\w+) ?([\w.]*) -->")
_FACES = ("truenas_os", "truenas_os.blocking", "truenas_os.fuse")
# Sections stand in this order, by the module that has the logic; others follow.
_ORDER = [
    "mounts",
    "trees",
    "files",
    "safefiles",
    "replacement",
    "xattrs",
    "attributes",
    "access",
    "filehandle",
    "mountapi",
    "mounting",
    "unmounting",
    "userns",
    "loop",
    "walker",
    "walk_items",
    "walk_options",
    "walk_tokens",
    "events",
    "watcher",
    "results",
    "fds",
    "errors",
    "arguments",
    "operations",
    "datatypes",
    "listing",
    "session",
    "server",
    "program",
    "notifications",
]
# Where the members that a class inherits are Python's own.
_FOREIGN = "int,bytes,dict,tuple,BaseException,AsyncIterator,Iterator,object"


def reference(name: str) -> str:
    """The public names of a module, in a section for each module that defines some of them."""
    face = importlib.import_module(name)
    sections: dict[str, list[str]] = {}
    for public, item in _documented(face):
        defined_in = getattr(item, "__module__", None) or name
        sections.setdefault(defined_in, []).extend(["", *_directive(public, item)])

    def place(module: str) -> tuple[int, str]:
        topic = module.rpartition(".")[2]
        return (_ORDER.index(topic) if topic in _ORDER else len(_ORDER)), module

    text = ""
    for module in sorted(sections, key=place):
        summary = importlib.import_module(module).__doc__ or module
        title = summary.partition("\n")[0].rstrip(".") if module != name else "Other names"
        lines = [f".. currentmodule:: {name}", *sections[module]]
        text += f"\n## {title}\n\n```{{eval-rst}}\n" + "\n".join(lines) + "\n```\n"
    if shared := _shared(face):
        names = ", ".join(f":class:`~truenas_os.{name}`" for name in shared)
        text += f"\n## What both faces have\n\n```{{eval-rst}}\n{names}\n```\n"
    for module in _modules(face):
        lines = [f".. automodule:: {module.__name__}", "   :members:"]
        if hasattr(module, "__all__"):  # it may name what other modules define
            lines[1:] = ["   :no-members:", "", f".. currentmodule:: {module.__name__}"]
            for public, item in _documented(module):
                lines += ["", *_directive(public, item)]
        text += f"\n## {module.__name__}\n\n```{{eval-rst}}\n" + "\n".join(lines) + "\n```\n"
    return text


def _documented(face: ModuleType) -> list[tuple[str, Any]]:
    """What is public in *face*, and the classes that its functions take and return."""
    names = [name for name in face.__all__ if name not in {*flags.__all__, *_shared(face)}]
    items = [(name, getattr(face, name)) for name in names]
    items = [pair for pair in items if not inspect.ismodule(pair[1])]
    known = {id(item) for _, item in items}
    for _, item in items:  # which grows
        for used in _classes_told_by(item):
            if id(used) not in known and _face_of(used) == face.__name__:
                known.add(id(used))
                items.append((f"{used.__module__}.{used.__name__}", used))
    return items


def _shared(face: ModuleType) -> list[str]:
    """The names in *face* of what is documented with another one."""
    if face is truenas_os or face is fuse:
        return []
    other = truenas_os if face is blocking else fuse
    shared = [name for name in face.__all__ if vars(other).get(name) is getattr(face, name)]
    return [name for name in shared if name not in flags.__all__]


def _face_of(item: type) -> str:
    """Where a class that no face exports is documented."""
    return max((face for face in _FACES if f"{item.__module__}.".startswith(f"{face}.")), key=len)


def _classes_told_by(item: Any) -> Iterator[Any]:
    """The classes of this package that a function takes or returns, or that a class has."""
    if inspect.isroutine(item) or hasattr(item, "_fields"):
        yield from _classes_of(item)
    elif inspect.isclass(item):
        for _, member in inspect.getmembers_static(item, lambda each: isinstance(each, property)):
            yield from _classes_of(member.fget)


def _classes_of(item: Any) -> Iterator[Any]:
    """The classes of this package that the signature of *item* names."""
    try:
        signature = inspect.signature(item, eval_str=True)
    except NameError:  # imported for type checkers only
        signature = inspect.signature(item)
    left = [parameter.annotation for parameter in signature.parameters.values()]
    left.append(signature.return_annotation)
    while left:
        annotation = left.pop()
        left += [each for each in typing.get_args(annotation) if not isinstance(each, str)]
        if inspect.isclass(annotation) and annotation.__module__.startswith("truenas_os."):
            yield annotation


def _modules(face: ModuleType) -> list[ModuleType]:
    """The public modules of a package that is not the whole library."""
    if face.__name__ != "truenas_os.fuse":
        return []
    names = [module.name for module in pkgutil.iter_modules(face.__path__)]
    modules = [importlib.import_module(f"{face.__name__}.{name}") for name in names]
    return [
        module
        for name, module in zip(names, modules, strict=True)
        if name in face.__all__ or hasattr(module, "__all__")
    ]


def _public() -> list[ModuleType]:
    """Every module that the reference is about."""
    return [*(importlib.import_module(face) for face in _FACES), *_modules(fuse)]


def _directive(public: str, item: Any) -> list[str]:
    if inspect.isclass(item):
        return [
            f".. autoclass:: {public}",
            "   :members:",
            f"   :inherited-members: {_FOREIGN}",
        ]
    return [f".. {'autofunction' if inspect.isroutine(item) else 'autodata'}:: {public}"]


def constants(_: str) -> str:
    """The kernel's constants, a table for each family."""
    families: dict[type[enum.Enum], list[tuple[str, enum.Enum]]] = {}
    text = ""
    for name in flags.__all__:
        value = getattr(flags, name)
        if isinstance(value, enum.Enum):
            families.setdefault(type(value), []).append((name, value))
        elif not inspect.isclass(value):
            text += f"| `{name}` | {value:#x} |\n"
    text = "\n## Without a family\n\n| constant | value |\n|---|---|\n" + text
    for family, members in sorted(families.items(), key=lambda pair: pair[0].__name__):
        notes = dict(re.findall(r"^    (\w+) = .*?  # (.*)", inspect.getsource(family), re.M))
        text += f"\n(constants-{family.__name__})=\n\n## {family.__name__}\n\n"
        text += _markdown(inspect.getdoc(family) or "")
        text += "\n\n| constant | value | |\n|---|---|---|\n"
        for name, value in sorted(members, key=lambda member: member[1].value):
            text += f"| `{name}` | {value.value:#x} | {notes.get(value.name, '')} |\n"
    return text


def versions(name: str) -> str:
    """The Linux version that each function of a module needs, as its docstring ends."""
    face = importlib.import_module(name)
    text = "| call | Linux |\n|---|---|\n"
    for public in sorted(face.__all__):
        item = getattr(face, public)
        if public in flags.__all__ or not (inspect.isroutine(item) or inspect.isclass(item)):
            continue
        told = re.findall(r"Linux (\d\.\d+\b[^.]*(?:\.\d[^.]*)*)\.", inspect.getdoc(item) or "")
        if told:
            text += f"| {{py:obj}}`{public} <{name}.{public}>` | {_markdown(told[-1])} |\n"
    return text


def _markdown(text: str) -> str:
    """A line of a docstring, whose markup is reStructuredText."""
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", " ".join(text.split())).replace("``", "`")


def commands(_: str) -> str:
    """What every command of ``python -m truenas_os`` prints with ``--help``."""
    os.environ.update(COLUMNS="80", NO_COLOR="1")
    parser = cli._parser()
    text = _help("python -m truenas_os", parser)
    for action in parser._subparsers._group_actions:
        for name, command in action.choices.items():
            text += f"\n(command-{name})=\n" + _help(f"python -m truenas_os {name}", command)
    return text


def _help(title: str, parser: argparse.ArgumentParser) -> str:
    return f"\n## {title}\n\n```text\n{parser.format_help()}```\n"


def _fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    kinds = {"reference": reference, "constants": constants}
    kinds |= {"versions": versions, "commands": commands}
    source[0] = _MARK.sub(lambda mark: kinds[mark[1]](mark[2]), source[0])


def _public_name(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Link what is known by the module that defines it to where it is documented."""
    target = node["reftarget"]
    domain = env.get_domain("py")
    module, _, name = target.rpartition(".")
    if not module.startswith("truenas_os"):
        candidates = [f"{face.__name__}.{target}" for face in _public()]
    else:
        try:
            item = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            return None
        candidates = [
            f"{face.__name__}.{name}" for face in _public() if getattr(face, name, None) is item
        ]
    for candidate in candidates:
        if candidate in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", candidate, node, content
            )
    return None


def _is_internal(item: Any) -> bool:
    """Whether a signature names what is not public: then it is the library that calls it."""
    return any(
        all(getattr(face, used.__name__, None) is not used for face in _public())
        for used in _classes_of(item)
        if not used.__module__.endswith(".arguments")
    )


def _constructor(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """A class that only the library makes, or nobody, has no constructor to be told."""
    if what != "class" or not signature:
        return None
    made_by_none = getattr(item, "_is_protocol", False) or issubclass(item, enum.Enum)
    return ("", None) if made_by_none or _is_internal(item) else None


def _skip(app: Sphinx, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """So is a method that only the library calls."""
    return True if what == "class" and inspect.isfunction(item) and _is_internal(item) else None


def _fields(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """What Python itself says of what has no docstring says nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    if hasattr(item, "__supertype__"):
        lines[:] = [f"A name for :class:`{item.__supertype__.__name__}`, for type checkers."]
    elif what == "data" and type(item) in (int, frozenset):
        lines.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-signature", _constructor)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _fields)
    app.connect("missing-reference", _public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
