"""The web page of `mgm-jax serve --web`: a chat and the mining microscope, in the server's process.

It asks the network for nothing: no analytics, no fonts or scripts of others. (Annotations are
evaluated here: gradio reads that of `look`, and does not find `gr` by its name.)
"""

import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fastapi import FastAPI

from mgm_jax.imagegen import NO_PROMPT, ImageSettings, decided, find_prompt, visible
from mgm_jax.serve import microscope
from mgm_jax.serve.conversation import read_messages, read_sampling
from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.images import paint
from mgm_jax.serve.media import decode
from mgm_jax.serve.schema import ChatBody
from mgm_jax.serve.service import Service

REFUSED = "This was not answered"  # title of the note that says why
USER = "mgm"  # of the login, where there is an API key
FONTS = ("system-ui", "sans-serif")
QUESTIONS = (
    "What is unusual about this image?",
    "Read all text in the picture.",
    "Show me one idea of what I could make with this.",
)
INTRODUCTION = "Show pictures and ask about them. *More* holds OCR, painting and how answers vary."
HOW_TO = (
    "Each visual token mines a square region of the high-resolution picture. Load a picture, then "
    "click into it: colour is what the tokens took, dark is what they left."
)


def mount(app: FastAPI, service: Service, path: str) -> FastAPI:
    """Adds the page at a path. ValueError without the extra `web`."""
    uploads = tempfile.mkdtemp(prefix="mgm_jax_web_")
    os.environ["GRADIO_TEMP_DIR"] = uploads  # read when gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise ValueError(f"--web needs {error.name}: pip install 'mgm-jax[web]'") from error
    return gr.mount_gradio_app(
        app,
        page(gr, service, Path(uploads)),
        path,
        auth=(USER, service.api_key) if service.api_key else None,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=service.limits.picture_bytes,
        theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
    )


def page(gr, service: Service, uploads: Path):
    """The gradio Blocks. `uploads`: the folder that pictures of visitors lie in."""
    limits, painter = service.limits, service.backend

    async def answer(message, history, temperature, top_p, tokens, seed, ocr, draw):
        how = {"temperature": temperature, "top_p": top_p, "max_tokens": int(tokens)}
        how |= {"seed": int(seed)} if seed >= 0 else {}
        how |= {"ocr": ocr, "generate_image": draw}
        try:
            async for reply in _answer(gr, service, uploads, message, history, how):
                yield reply
        except (ApiError, ValueError) as error:  # gr.Error would leave the stop button there
            yield [{"content": str(error), "metadata": {"title": REFUSED}}]

    async def load(picture):
        if picture is None:
            return None, None, None, ""
        try:
            mined = await service.decode(_mine, service, uploads, picture)
        except (ApiError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return mined, microscope.overview(mined), None, HOW_TO

    def look(mined, click: gr.SelectData):
        if mined is None:
            return gr.skip(), gr.skip(), gr.skip()
        size = microscope.overview(mined).width
        token = mined.token_at(*click.index, size)
        views = microscope.overview(mined, token), microscope.region(mined, token)
        return *views, microscope.describe(mined, token)

    with gr.Blocks(title=service.name, analytics_enabled=False, fill_height=True) as blocks:
        with gr.Tab("Chat"):
            late = {"render": False}  # placed by the interface
            tokens = min(512, limits.tokens)
            controls = [
                gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: no chance)", **late),
                gr.Slider(0.05, 1, 1, step=0.05, label="Top p", **late),
                gr.Slider(1, limits.tokens, tokens, step=1, label="Tokens", **late),
                gr.Number(-1, precision=0, label="Seed (-1: any)", **late),
                gr.Checkbox(
                    False, label="Read text in pictures (OCR)", interactive=service.ocr, **late
                ),
                gr.Checkbox(
                    False, label="Paint a picture", interactive=painter is not None, **late
                ),
            ]
            box = gr.MultimodalTextbox(
                file_types=["image"],
                file_count="multiple",
                placeholder="Ask a question; the clip adds pictures",
                show_label=False,
                stop_btn=True,
                elem_id="question",
                **late,
            )
            gr.ChatInterface(
                answer,
                multimodal=True,
                textbox=box,
                chatbot=gr.Chatbot(elem_id="chat", height="60vh", label=service.name, **late),
                additional_inputs=controls,
                additional_inputs_accordion=gr.Accordion("More", open=False, **late),
                description=INTRODUCTION,
                examples=[[{"text": question, "files": []}] for question in QUESTIONS],
                run_examples_on_click=False,
                cache_examples=False,
                editable=True,
                analytics_enabled=False,
                concurrency_limit=None,
                api_visibility="private",
            )
        with gr.Tab("Mining microscope"):
            state = gr.State()
            with gr.Row():
                with gr.Column():
                    source = gr.Image(
                        type="filepath", label="Picture", elem_id="source", height=240
                    )
                    words = gr.Markdown(HOW_TO, elem_id="words")
                    closeup = gr.Image(
                        interactive=False,
                        label="Its region: pixels, and what was mined",
                        elem_id="closeup",
                    )
                whole = gr.Image(interactive=False, label="What was mined", elem_id="mined")
            source.change(load, source, [state, whole, closeup, words], api_visibility="private")
            whole.select(look, state, [whole, closeup, words], api_visibility="private")
    return blocks


async def _answer(
    gr, service: Service, uploads: Path, message, history, how
) -> AsyncIterator[list]:
    """What the chat shows of an answer, anew with every piece of it."""
    names = list(turns([*history, {"role": "user", "content": message}]))
    with service.admit():
        body = ChatBody.model_validate({"model": service.name, "messages": names} | how)

        def read(url: str, field: str):
            return decode(_upload(url, uploads), service.limits, "an upload")

        args = (body, service.limits, read, service.engine.model.tokenizer, service.ocr_tokens)
        conversation = await service.decode(read_messages, *args)
        notes = []
        if body.ocr and conversation.ocr:
            title = {"title": "Text read in the pictures"}
            notes = [{"content": ", ".join(conversation.ocr), "metadata": title}]
        ticket = service.engine.submit(conversation.request, read_sampling(body, service.limits))
        text = ""
        async for piece in ticket.astream():  # cancels when it is closed
            text += piece.text
            shown = visible(decided(text)) if body.generate_image else text
            yield [*notes, shown]
        reply = [*notes, visible(text) if body.generate_image else text]
        if body.generate_image:
            prompt = find_prompt(text)
            note = {"content": prompt or NO_PROMPT, "metadata": {"title": "Prompt of the picture"}}
            reply.append(note)
            yield reply
            if prompt:
                png, _ = await service.paint(paint, service, prompt, ImageSettings())
                file = uploads / f"{secrets.token_hex(8)}.png"
                file.write_bytes(png)
                reply.append(gr.Image(str(file), label=prompt))
        yield reply


def turns(history) -> Iterator[dict]:
    """Messages of gradio's chat -> OpenAI's, one for each turn: uploads as their paths; without
    notes, which have metadata, questions that were refused, and pictures that were painted."""
    role, parts = None, []
    for message in history:
        if note := message.get("metadata"):
            if note.get("title") == REFUSED:
                role, parts = None, []
            continue
        if message["role"] != role:
            if parts:
                yield {"role": role, "content": parts}
            role, parts = message["role"], []
        parts += _parts(message["content"], pictures=role == "user")
    if parts:
        yield {"role": role, "content": parts}


def _parts(content, pictures: bool) -> Iterator[dict]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    elif isinstance(content, list):
        for item in content:
            yield from _parts(item, pictures)
    elif isinstance(content, dict) and "files" in content:  # what the text box gives
        for file in content["files"]:
            yield from _parts(file if isinstance(file, dict) else {"path": file}, pictures)
        if content.get("text"):
            yield {"type": "text", "text": content["text"]}
    elif isinstance(content, dict) and isinstance(content.get("text"), str):
        yield {"type": "text", "text": content["text"]}
    elif isinstance(content, dict) and pictures:
        file = content.get("file", content)
        if path := file.get("path"):
            yield {"type": "image_url", "image_url": {"url": path}}


def _upload(path: str, uploads: Path) -> bytes:
    """The bytes of a visitor's own upload; ApiError for any other file."""
    file = Path(path).resolve()
    if not file.is_relative_to(uploads.resolve()):
        raise ApiError(400, "this is no upload")
    return file.read_bytes()


def _mine(service: Service, uploads: Path, path: str) -> microscope.Mined:
    picture = decode(_upload(path, uploads), service.limits, "the upload")
    return microscope.mine(service.engine.model, picture)
