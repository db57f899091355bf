"""The web application over a `Service`: all routes, and its beginning and end."""

from __future__ import annotations

import contextlib

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from mgm_jax import __version__
from mgm_jax.serve import images, openai_api
from mgm_jax.serve.errors import add_handlers
from mgm_jax.serve.guard import Guard
from mgm_jax.serve.metrics import EngineCollector, Requests
from mgm_jax.serve.service import Service

PAGE = "/web"


def create_app(
    service: Service, *, hosts: tuple[str, ...] | None = None, web: bool = False
) -> FastAPI:
    """An ASGI application that starts the service with itself and closes it in the end.

    `hosts`: see `guard.Guard`. `web`: with the page; ValueError without the extra `web`.
    """
    registry = CollectorRegistry()
    registry.register(EngineCollector(service.engine.stats))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        service.start()
        try:
            yield
        finally:
            service.close()

    # FastAPI's own pages of documentation would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard,
        api_key=service.api_key,
        hosts=hosts,
        requests=Requests(registry),
        page=PAGE if web else None,
    )
    add_handlers(app)
    app.include_router(openai_api.router(service))
    app.include_router(images.router(service))

    @app.get("/health")
    async def health():
        status = "closing" if service.closing else "ready" if service.ready else "compiling"
        stats = service.engine.stats
        values = {"status": status, "compiled": stats.compiled, "of": stats.to_compile}
        values |= {"occupied": stats.occupied, "waiting": stats.waiting}
        return JSONResponse(values, 200 if status == "ready" else 503)

    @app.get("/version")
    async def version():
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics():
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    if not web:
        return app

    @app.get("/")
    async def root():
        return RedirectResponse(PAGE)

    from mgm_jax.serve.web import mount

    return mount(app, service, PAGE)
