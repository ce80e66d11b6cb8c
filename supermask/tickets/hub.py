"""Tickets on the hub: `hf:USER/NAME` is read through the cache of the package huggingface_hub, and sent in one commit.

What comes from there is a file of a stranger, and is read as any other: no code, nothing imported, checked whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .ticket import TicketError

PREFIX = "hf:"
# The file that is meant where none is named, and the page that the hub shows of a repository.
TICKET, CARD = "ticket.safetensors", "README.md"

# As huggingface_hub has them, so that a name is refused before anything is asked of anybody.
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_PATH = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"
_FORM = re.compile(rf"hf:({_PATH})(?:@({_PATH}))?(?::({_PATH}\.safetensors))?")
_LOGIN = "`hf auth login` logs in, or HF_TOKEN holds a token"


class HubError(OSError):
    """The hub did not do what it was asked; the message says what happened and what to do."""


@dataclass(frozen=True)
class Place:
    """Where a ticket is on the hub: `hf:USER/NAME@REVISION:FILE`, of which revision and file may be left out.

    repository: `USER/NAME`.
    revision: a branch, a tag or a commit; the newest of the main branch where it is empty.
    file: `ticket.safetensors`, or the path of another file in the repository.
    """

    repository: str
    revision: str = ""
    file: str = TICKET

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{'' if self.file == TICKET else f':{self.file}'}"


@dataclass(frozen=True)
class Repository:
    """What is on the hub under a name: its files, its last commit, and whether only those who are let in see it."""

    files: frozenset[str]
    commit: str
    private: bool


def is_place(source: object) -> TypeGuard[str]:
    """Whether this is the name of a ticket on the hub, right or wrong; a file of such a name is `./hf:...`."""
    return isinstance(source, str) and source.startswith(PREFIX)


def read_place(text: str) -> Place:
    """The place that a name such as `hf:USER/NAME`, `hf:USER/NAME@REVISION` or `hf:USER/NAME:FILE.safetensors` says.

    Raises:
        TicketError: it is no such name; where it is near one, that is given.
    """
    found = _FORM.fullmatch(text)
    parts = found[1].split("/") if found else []
    if found and len(parts) == 2 and all(re.fullmatch(_PART, part) for part in parts) and ".." not in text:
        return Place(found[1], found[2] or "", found[3] or TICKET)
    raise TicketError(
        f"{text[:200]!r} is no name of a ticket on the hub: expected hf:USER/NAME, or hf:USER/NAME@REVISION for another"
        f" commit, branch or tag than the newest, or hf:USER/NAME:FILE.safetensors for another file than {TICKET}"
        f"{_near(text)}"
    )


def _near(text: str) -> str:
    words = [word for word in re.split(r"[/:]+", text.removeprefix(PREFIX)) if word]
    guess = f"{PREFIX}{'/'.join(words[:2])}" + (f":{'/'.join(words[2:])}" if len(words) > 2 else "")
    fits = len(words) > 1 and guess != text and len(guess) < 200 and _FORM.fullmatch(guess)
    return f"; did you mean {guess}?" if fits else ""


def fetch(place: Place) -> Path:
    """The file of a ticket in the cache of huggingface_hub, downloaded where it is not there or is an older one.

    With `HF_HUB_OFFLINE=1`, or where the hub cannot be reached, it is what the cache has.

    Raises:
        HubError: it is not to be had.
    """
    hub, where = _hub(), (place.repository, place.file)
    revision = place.revision or None
    with _told(place, hub, lambda: _say_missing(place, hub)):
        try:
            # A download asks for half a minute where the hub cannot be reached; this asks once.
            hub.get_hf_file_metadata(hub.hf_hub_url(*where, revision=revision))
        except (hub.errors.HTTPError, OSError) as error:
            if isinstance(error, hub.errors.HfHubHTTPError) and error.response.status_code < 500:
                raise
            try:
                return Path(hub.hf_hub_download(*where, revision=revision, local_files_only=True)).absolute()
            except hub.errors.LocalEntryNotFoundError:
                raise error from None
        return Path(hub.hf_hub_download(*where, revision=revision)).absolute()


def look(place: Place) -> Repository | None:
    """What is there under a repository's name, or None where there is nothing that is shown to us.

    Raises:
        HubError: the hub cannot be asked.
    """
    hub = _hub()
    with _told(place, hub, to_write=True):
        try:
            found = hub.HfApi().model_info(place.repository)
        except hub.errors.HfHubHTTPError as error:
            if error.response.status_code in (401, 404):
                return None
            raise
    files = frozenset(each.rfilename for each in found.siblings or ())
    return Repository(files, str(found.sha), bool(found.private))


def send(
    place: Place, files: Mapping[str, bytes], message: str, there: Repository | None, private: bool = False
) -> Place:
    """Send files to a repository in one commit, and make the repository first where it is not there.

    Args:
        place: of the ticket.
        files: their content by their path in the repository. Files of these names are replaced.
        message: of the commit.
        there: what `look` has found. Where the repository has changed since, nothing is sent.
        private: of a repository that is made: shown to nobody but its owner.

    Returns:
        The place with the commit as its revision.

    Raises:
        HubError: it is refused, or the hub cannot be reached.
    """
    hub = _hub()
    with _told(place, hub, to_write=True):
        api = hub.HfApi()
        if there is None:
            api.create_repo(place.repository, private=private)
        done = api.create_commit(
            place.repository,
            [hub.CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message,
            parent_commit=None if there is None else there.commit,
        )
    return Place(place.repository, str(done.oid), place.file)


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise HubError(
            f'{PREFIX}... is a ticket on the hub, which takes the package huggingface_hub: pip install "supermask[hub]"'
        ) from None
    return huggingface_hub


def _say_missing(place: Place, hub: Any) -> str:
    """What there is in place of a file that a repository does not have."""
    there = hub.HfApi().model_info(place.repository, revision=place.revision or None).siblings or ()
    tickets = [each.rfilename for each in there if each.rfilename.endswith(".safetensors")]
    if not tickets:
        return f"{place}: the repository has no {place.file}, nor another .safetensors file: it holds no ticket"
    named = ", ".join(str(Place(place.repository, place.revision, name)) for name in sorted(tickets)[:10])
    return f"{place}: the repository has no {place.file}; its files are {named}"


@contextmanager
def _told(
    place: Place, hub: Any, say_missing: Callable[[], str] = lambda: "", to_write: bool = False
) -> Iterator[None]:
    """Say in one sentence of ours what huggingface_hub raises."""
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{place}: its owner gives it to those who ask, on the page of the repository; then {_LOGIN}"
        ) from None
    except errors.RepositoryNotFoundError as error:
        raise HubError(_not_ours(place, error.response.status_code, to_write)) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{place}: the repository has no revision '{place.revision}': expected a branch, a tag or a whole commit"
        ) from None
    except errors.EntryNotFoundError:
        with _told(place, hub):
            raise HubError(say_missing()) from None
    except errors.HfHubHTTPError as error:
        raise HubError(_not_ours(place, error.response.status_code, to_write, error.server_message or "")) from None
    except HubError:
        raise
    except (errors.HTTPError, OSError) as error:
        raise HubError(_unreached(place, hub, error, to_write)) from None
    except ValueError as error:
        # As of a card whose YAML the hub does not take.
        raise HubError(f"{place}: {_one_line(error)}") from None


def _not_ours(place: Place, status: int, to_write: bool, said: str = "") -> str:
    """What a status of HTTP means for somebody who wants to read a repository, or to write to it."""
    said = f" ({_one_line(said)})" if said else ""
    if status == 401 and to_write:
        return f"{place}: the hub takes files only from those who are logged in{said}: {_LOGIN}, one that may write"
    if status in (401, 404):
        return (
            f"{place}: there is no such repository, or it is private{said}: check the name; if it is private, {_LOGIN}"
        )
    if status == 403 and to_write:
        return (
            f"{place}: the name is not yours to write to, or your token may only read{said}: choose a name under your "
            "own user or organization, or a token that may write"
        )
    if status == 403:
        return f"{place}: the hub does not let you read it{said}: {_LOGIN}"
    if status == 409:
        return f"{place}: the name is taken by a repository that is not shown to you{said}: choose another name"
    if status == 412:
        return (
            f"{place}: the repository has changed meanwhile, and nothing was sent{said}: the same command looks again"
        )
    return f"{place}: the hub answered with status {status}{said}; try again later"


def _unreached(place: Place, hub: Any, cause: BaseException, to_write: bool) -> str:
    if isinstance(cause, hub.errors.OfflineModeIsEnabled):
        if to_write:
            return f"{place}: nothing can be sent while HF_HUB_OFFLINE is set"
        return f"{place}: HF_HUB_OFFLINE is set, and the cache does not have it: load it once without HF_HUB_OFFLINE"
    cached = "" if to_write else ", and the cache does not have it"
    return f"{place}: the hub cannot be reached ({_one_line(cause)}){cached}: check the connection, or try again later"


def _one_line(error: BaseException | str, most: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= most else f"{text[:most]}..."
