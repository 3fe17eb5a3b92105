"""Whether a request is answered at all: by its headers, before its body is read."""

from starlette.datastructures import Headers
from starlette.types import Scope

from dml.serving.app.keys import LOCAL, Caller, Keys
from dml.serving.app.problems import Refused
from dml.serving.app.rates import Rates
from dml.serving.app.settings import ServiceSettings

_OPEN_TO_ALL = ("/healthz", "/readyz", "/openapi.json")


class Admission:
    """Who sends a request, by which name of the service, and how many already.

    Args:
        settings: of the service.
        keys: None: nobody needs one.
    """

    def __init__(self, settings: ServiceSettings, keys: Keys | None) -> None:
        self._settings, self._limits, self._keys = settings, settings.limits, keys
        self._rates = Rates(self._limits.rate, self._limits.burst)

    def admit(self, scope: Scope, headers: Headers, num_requests: int) -> Caller | None:
        """Who sends a request; None: anybody, of what is open to all. Its `state` gets it, too.

        Args:
            scope: of the request.
            headers: of the request.
            num_requests: that are being answered, this one among them.

        Raises:
            Refused: it is one too many, of another name, without a key, or beyond the caller's rate.
        """
        if num_requests > self._limits.requests:
            raise Refused(
                503,
                "overloaded",
                f"At most {self._limits.requests} requests are answered at once",
                "this is one more",
                "Try again.",
                retry_after=1,
            )
        self._require_host(headers)
        caller = self._caller(scope, headers)
        scope["state"]["caller"] = caller
        scope["state"]["limit_rate"] = lambda tokens: self._limit_rate(caller, scope, tokens)
        if scope["path"].startswith("/v1"):
            self._limit_rate(caller, scope, 1)
        return caller

    def _limit_rate(self, caller: Caller | None, scope: Scope, tokens: int) -> None:
        address = (scope.get("client") or ("unknown",))[0]
        who = f"address {address}" if caller is None or caller is LOCAL else f"key {caller.id}"
        wait = self._rates.take(who, tokens)
        if wait:
            raise Refused(
                429,
                "rate_limited",
                f"A caller must send at most {self._limits.rate:g} queries a second",
                "more came",
                f"Wait {wait} s.",
                retry_after=wait,
            )

    def _require_host(self, headers: Headers) -> None:
        """Without keys a page of any web site could ask a service of this machine, by a name of its own for
        127.0.0.1: so the name is checked."""
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._settings.hosts and name.lower() not in self._settings.hosts:
            raise Refused(
                403,
                "host",
                f"A service without keys must be called as {', '.join(self._settings.hosts)}",
                "another name came",
                "Use one of these, or serve with keys.",
            )
        if self._settings.hosts and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(
                403,
                "cross_site",
                "A service without keys must be asked by its own page or a program",
                "the page of another site asks",
                "Serve with keys.",
            )

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        """None: anybody, of what is open to all."""
        if self._keys is None:
            return LOCAL
        path = scope["path"]
        scheme, _, key = headers.get("authorization", "").partition(" ")
        caller = self._keys.caller(key.strip()) if scheme.lower() == "bearer" and key else None
        if caller is None and (path.startswith("/v1") or path == "/metrics") and path not in _OPEN_TO_ALL:
            got = "it is none of this service's" if key else "there is none"
            raise Refused(
                401,
                "unauthorized",
                "A request must have an API key in the header Authorization: Bearer KEY",
                got,
                "Ask the operator for one: dml keys make.",
            )
        return caller
