"""The web application: the list, the page of a row, its audio, and marks."""

from collections.abc import Callable, Collection
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio.from_thread
import duckdb
import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.dataset.marks import set_marks
from pipeline.errors import DataProblem, UsageProblem
from pipeline.explore.audio import NothingToHear, open_content, sound_of
from pipeline.explore.conditions import Conditions
from pipeline.explore.guard import Guard, Token
from pipeline.explore.index import Changed, Place, is_unreadable, read_row
from pipeline.explore.live import Live
from pipeline.explore.query import LIMIT_S, Catalog, Page
from pipeline.explore.ranges import serve
from pipeline.explore.selection import PAGE_ROWS, Selection
from pipeline.pages.row import row_view
from pipeline.pages.templates import asset, environment
from pipeline.pages.waveform import NoWaveform, peaks
from schemas.storage.location import absolute

_HERE = Path(__file__).parent
_ASSETS = {
    "pages.css": ("text/css", asset),
    "player.js": ("text/javascript", asset),
    "explore.css": ("text/css", lambda name: (_HERE / "assets" / name).read_text("utf-8")),
    "explore.js": ("text/javascript", lambda name: (_HERE / "assets" / name).read_text("utf-8")),
}
_LARGEST_FORM = 1 << 20
_GONE = "the dataset does not have this row (any more): a run may have replaced or removed it"


class NoSuchRow(Exception):  # noqa: N818
    """The dataset does not have the row."""


class Explorer:
    """The application over one dataset."""

    def __init__(self, live: Live, hosts: Collection[str], conditions: Conditions, limit_s: float = LIMIT_S) -> None:
        """Create the application; a server runs `asgi`.

        Args:
            live: the dataset.
            hosts: accepted values of the Host header, `name:port`.
            conditions: answers selections with a condition.
            limit_s: time limit of any other query, in seconds.
        """
        self._live = live
        self._conditions = conditions
        self._limit_s = limit_s
        self._catalog = Catalog(live.index, limit_s)
        self._catalog.counts(Selection(), live.marks)  # now, so that the first page need not wait for them
        self._token = Token()
        self._peaks = lru_cache(256)(self._drawn)
        self._templates = environment().overlay(
            loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(_HERE / "templates"), environment().loader])  # type: ignore[list-item]
        )
        self._templates.globals.update(dataset=PurePath(absolute(live.layout.url)).name, token=self._token.value)
        self.asgi = Starlette(
            routes=[
                Route("/", self._list),
                Route("/row/{row_id:path}", self._row),
                Route("/audio/{row_id:path}", self._audio),
                Route("/waveform/{row_id:path}", self._waveform),
                Route("/mark", self._mark, methods=["POST"]),
                Route("/assets/{name}", self._asset),
            ],
            middleware=[Middleware(Guard, hosts=hosts)],
            exception_handlers={
                UsageProblem: self._problem(400),
                NoSuchRow: self._problem(404),
                NothingToHear: self._problem(404),
                NoWaveform: self._problem(404),
                DataProblem: self._problem(503),
                404: self._problem(404),
            },
        )

    @property
    def catalog(self) -> Catalog:
        """The catalog of the newest index."""
        index = self._live.index
        if self._catalog.index is not index:
            self._catalog = Catalog(index, self._limit_s)
        return self._catalog

    def _list(self, request: Request) -> Response:
        """A page of rows beside the facets. If a condition cannot be evaluated, the page says why."""
        catalog, marks = self.catalog, self._live.marks
        selection = Selection.of(request.query_params, catalog.facets, catalog.index.fields)
        page, problem = Page(), None
        try:
            if selection.where:
                page = self._conditions.page(catalog.index, selection, marks, partial(_has_left, request))
            else:
                page = catalog.page(selection, marks)
        except UsageProblem as error:
            problem = str(error)
        except (Changed, duckdb.Error) as error:
            if isinstance(error, duckdb.Error) and not is_unreadable(error):
                raise
            self._live.reopen()
            raise DataProblem("the dataset changed while it was read: reload the page") from error
        return self._page(
            "list.html",
            400 if problem else 200,
            rows=page.rows,
            counts=page.counts,
            problem=problem,
            selection=selection,
            facets=catalog.facets,
            fields=[
                name for name, kind in catalog.index.fields.items() if kind != "list" and not name.endswith("model")
            ],
            size=catalog.index.size,
            pages=-(-page.counts.rows // PAGE_ROWS),
            first=(selection.page - 1) * PAGE_ROWS + 1,
            stale=self._live.stale,
        )

    def _row(self, request: Request) -> Response:
        """One row with everything that is known about it."""
        row_id = request.path_params["row_id"]
        place, row = self._found(row_id)
        duration_s = (row.get("audio") or {}).get("duration_s")
        view = row_view(row, self.catalog.index.gates)
        catalog = self.catalog
        return self._page(
            "song.html",
            row={**view, "duplicate_of": None},
            copy_of=view["duplicate_of"],
            sound=sound_of(self._live.layout, place, duration_s),
            mark=self._live.marks.by_row.get(row_id),
            selection=Selection.of(request.query_params, catalog.facets, catalog.index.fields),
        )

    def _audio(self, request: Request) -> Response:
        """The audio of a row, or the requested range of it."""
        return serve(request, open_content(self._live.layout, self._place(request.path_params["row_id"])))

    def _waveform(self, request: Request) -> Response:
        """The waveform of a row's audio, as a JSON list of bar heights."""
        return JSONResponse(self._peaks(self._place(request.path_params["row_id"])))

    async def _mark(self, request: Request) -> Response:
        """Set or remove marks: form fields `row_id` (repeatable), `mark`, `note`, `back`, `token`."""
        body = await request.body()
        if len(body) > _LARGEST_FORM:
            raise UsageProblem("the request is larger than any form of these pages")
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        return await run_in_threadpool(self._marked, form, "application/json" in request.headers.get("accept", ""))

    def _marked(self, form: dict[str, list[str]], as_json: bool) -> Response:
        def one(name: str) -> str:
            return form.get(name, [""])[0]

        if not self._token.fits(one("token")):
            return self._page("problem.html", 403, message="this form is from an earlier run: reload the page")
        row_ids, kind = form.get("row_id", []), one("mark")
        if not row_ids:
            raise UsageProblem("no row is selected")
        unknown = set(row_ids) - self._live.index.places(row_ids).keys()
        if unknown:
            raise UsageProblem(f"not in the dataset: {', '.join(sorted(unknown)[:5])}")
        set_marks(
            self._live.layout, dict.fromkeys(row_ids, None if kind == "none" else kind), one("note").strip() or None
        )
        if as_json:
            return JSONResponse({"rows": row_ids, "mark": kind})
        return RedirectResponse(_on_this_site(one("back")), status_code=303)

    def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            raise NoSuchRow(f"there is no file {name}")
        media_type, read = _ASSETS[name]
        return Response(read(name), media_type=media_type, headers={"Cache-Control": "no-cache"})

    def _place(self, row_id: str) -> Place:
        place = self._live.index.places([row_id]).get(row_id)
        if place is None:
            raise NoSuchRow(_GONE)
        return place

    def _found(self, row_id: str) -> tuple[Place, dict[str, Any]]:
        """A row and its place; looked up a second time if a run has just moved it."""
        try:
            place = self._place(row_id)
            return place, read_row(self._live.layout.store, place)
        except Changed:
            self._live.reopen()
        try:
            place = self._place(row_id)
            return place, read_row(self._live.layout.store, place)
        except Changed as problem:
            raise DataProblem("the dataset is changing: reload the page in a moment") from problem

    def _drawn(self, place: Place) -> list[float]:
        with open_content(self._live.layout, place).file as file:
            return peaks(file)

    def _page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(name).render(**values), status, {"Cache-Control": "no-store"})

    def _problem(self, status: int) -> Callable[[Request, Exception], Response]:
        def respond(request: Request, problem: Exception) -> Response:
            message = str(getattr(problem, "detail", None) or problem)
            if "application/json" in request.headers.get("accept", ""):
                return JSONResponse({"problem": message}, status)
            return self._page("problem.html", status, message=message)

        return respond


def _has_left(request: Request) -> bool:
    """Whether the browser has disconnected; called from the worker thread that answers it."""
    return anyio.from_thread.run(request.is_disconnected)


def _on_this_site(address: str) -> str:
    """An address to go back to, without its host: a form must not redirect to another site."""
    parts = urlsplit(address)
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path
