"""`dml serve` and `dml keys`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Settings, SeveralWords, Store, Who, Workers, app, store_uri, verb, who_or_user
from dml.cli.output import emit, print_table
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.reports import KeyList, NewKey, ServedAddress

KeyFile = Annotated[
    Path | None, typer.Option("--keys", help="file of API keys; default: service/keys.json of the store")
]


@verb()
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(help="indexes to serve; default: all of the store, new ones too")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="address to listen on; others than this machine's need keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="to listen on; 0: a free one")] = 8000,
    workers: Workers = None,
    settings: Settings = None,
    ask_for_keys: Annotated[
        bool,
        typer.Option(
            "--ask-for-keys",
            help="ask for API keys on this machine's own addresses, too; --keys does so as well",
        ),
    ] = False,
    keys: KeyFile = None,
    store: Store = None,
    as_json: Json = False,
) -> "ServedAddress":
    """Answer searches over HTTP until Ctrl-C, with new index versions as they are published."""
    from dml.reports import ServedAddress
    from dml.serving.app.server import serve as run
    from dml.serving.app.settings import ServiceSettings, is_loopback

    _require_settable(settings or [])
    root = store_uri(store)
    path = _key_file(root, keys)
    asks = ask_for_keys or keys is not None or not is_loopback(host)
    if asks:
        from dml.serving.app.keys import read_keys

        if not read_keys(path):
            raise InvalidSetting(
                f"A service that asks for API keys must have one; {path} has none. Make one: dml "
                "keys make NAME --permissions read."
            )
    service = ServiceSettings(store=root, indexes=tuple(names or ()), keys=path if asks else None)
    service = service.overridden(settings or [])
    served: list[ServedAddress] = []

    def announce(address: str) -> None:
        served.append(emit(ServedAddress(address=address, store=root, keys=asks), as_json, _show_address))

    run(service, host=host, port=port, workers=workers or 1, announce=announce)
    return served[-1]


_GIVEN_OTHERWISE = {"store": "--store", "indexes": "their names as arguments", "keys": "--keys"}


def _require_settable(settings: list[str]) -> None:
    """Refuse in --set what has an option of its own: the option's checks are of that."""
    for setting in settings:
        name = setting.partition("=")[0].strip()
        if name in _GIVEN_OTHERWISE:
            raise InvalidSetting(
                f"--set must name a setting without an option of its own; got {name}. "
                f"Use {_GIVEN_OTHERWISE[name]}."
            )


def _show_address(served: "ServedAddress") -> None:
    keys = "asks for API keys" if served.keys else "asks for no key"
    print(f"{served.address} answers ({keys}); {served.address}/openapi.json describes it. Ctrl-C ends it.")


def _key_file(store: str, named: Path | None, *, begins: bool = False) -> Path:
    """Where the keys are; `begins`: of a store that may not be there yet."""
    from dml.settings import local_folder, service_folder

    if begins and named is None:
        local_folder(store)
    return named or service_folder(store) / "keys.json"


keys_app = typer.Typer()
app.add_typer(keys_app, name="keys")


@verb(keys_app.callback, invoke_without_command=True)
def list_keys(
    context: typer.Context, keys: KeyFile = None, store: Store = None, as_json: Json = False
) -> "KeyList | None":
    """List the API keys of the service, without the keys themselves; make one, or revoke it."""
    if context.invoked_subcommand is not None:
        context.obj = (keys, store, as_json)  # `dml keys --json make NAME` asks for JSON, too
        return None
    return _emit_keys(_key_file(store_uri(store), keys), as_json)


@verb(keys_app.command, name="make", cls=SeveralWords)
def make(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="who gets it")],
    permissions: Annotated[
        list[str], typer.Option("--permissions", help="read, enrol, forget or admin, which may all")
    ],
    galleries: Annotated[
        list[str] | None, typer.Option("--galleries", help="indexes that it is for; default: all")
    ] = None,
    keys: KeyFile = None,
    who: Who = None,
    store: Store = None,
    as_json: Json = False,
) -> "NewKey":
    """Make an API key; it is shown once, and only its hash is kept."""
    from dml.reports import NewKey
    from dml.serving.app.keys import make_key

    path, as_json = _inherited(context, keys, store, as_json, begins=True)
    made, secret = make_key(path, name, permissions, galleries or [], who=who_or_user(who))
    report = NewKey(key=secret, **made.model_dump(exclude={"sha256"}))
    return emit(report, as_json, _show_new)


def _show_new(made: "NewKey") -> None:
    print(f"{made.key}\nkeep it: it is shown this once. Revoke it: dml keys revoke {made.id}")


@verb(keys_app.command, name="revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="its id, as `dml keys` shows it")],
    keys: KeyFile = None,
    who: Who = None,
    store: Store = None,
    as_json: Json = False,
) -> "KeyList":
    """Revoke an API key; running services refuse it within a second."""
    from dml.serving.app.keys import revoke_key

    path, as_json = _inherited(context, keys, store, as_json)
    revoke_key(path, key, who=who_or_user(who))
    return _emit_keys(path, as_json)


def _inherited(
    context: typer.Context, keys: Path | None, store: str | None, as_json: bool, *, begins: bool = False
) -> tuple[Path, bool]:
    """The file of keys and whether JSON is wanted, where options stand before or after the inner verb."""
    outer_keys, outer_store, outer_json = context.obj or (None, None, False)
    path = _key_file(store_uri(store or outer_store), keys or outer_keys, begins=begins)
    return path, as_json or outer_json


def _emit_keys(path: Path, as_json: bool) -> "KeyList":
    from dml.reports import KeyList, ListedKey
    from dml.serving.app.keys import read_keys

    listed = [ListedKey(**key.model_dump(exclude={"sha256"})) for key in read_keys(path)]
    return emit(KeyList(keys=listed), as_json, _show_keys)


def _show_keys(found: "KeyList") -> None:
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "permissions": ", ".join(key.permissions),
            "galleries": ", ".join(key.galleries) or "all",
            "created": f"{key.created:%Y-%m-%d %H:%M}",
        }
        for key in found.keys
    ]
    print_table("API keys", rows)
