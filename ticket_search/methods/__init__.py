"""The search methods: one file each; the file's name is the method's name on the command line.

Other packages add methods by entry points of the group `ticket_search.methods`, each the name of a module that has what
a file of this folder has.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from supermask.plugins.entry_points import Declaration, declarations

from ..contract.declared import METHODS, load_declared
from ..contract.errors import RequestError, unknown
from ..contract.method import Method, describe_method, method_problems

# The training of a ticket is a run too, and is called so in its folder.
_TAKEN = ("train", "beginning")


def own_methods() -> list[str]:
    """The names of the methods of this package."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[!_]*.py"))


def declared_methods() -> Mapping[str, Declaration]:
    """The methods of other packages."""
    return declarations(METHODS, own=(*own_methods(), *_TAKEN))


def method_names() -> list[str]:
    """The names of all methods, of this package and of others. Nothing is imported: some may not be usable."""
    return sorted({*own_methods(), *declared_methods()})


def find_method(name: str) -> Method:
    """The method of a name. Its module is imported; those of this package import no torch.

    Raises:
        RequestError: an unknown name; the nearest and all of them are given. Or one that another package declares and
            that cannot be used, with the reason.
    """
    declared = declared_methods()
    if name in declared:
        module = load_declared(declared[name])
        if problems := method_problems(name, module):
            raise RequestError(f"the method '{name}' of {declared[name].package} is none: {'; '.join(problems)}")
        return describe_method(name, module)
    if name not in own_methods():
        raise RequestError(unknown("method", name, method_names()))
    return describe_method(name, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def usable_methods() -> tuple[list[Method], dict[str, str]]:
    """All methods that can be used, and for each other name the reason in one line."""
    found, refused = [], {}
    for name in method_names():
        try:
            found.append(find_method(name))
        except RequestError as error:
            refused[name] = str(error)
    return found, refused
