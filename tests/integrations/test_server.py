"""The application in this process, with a tiny random model: answers, refusals, and what is left behind."""

from __future__ import annotations

import base64
import json
import threading
import time

import numpy as np
import openai
import pytest

from liteframe.integrations.server.app import Server
from liteframe.integrations.server.settings import ServeSettings
from liteframe.language.prompt import Dialogue
from tiny_server import QUESTION, Gate, about, client_of, make_model, request

CHAT = "/v1/chat/completions"


def data_url(path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def upload(client, path, name="clip.mp4"):
    return client.post("/v1/files", files={"file": (name, path.read_bytes())}, data={"purpose": "vision"})


def error_of(response) -> dict:
    """The error of a refusal, in OpenAI's format, which tells nothing about this machine."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for private in ("/tmp", "/home", "/work", "Traceback", ".py"):
        assert private not in json.dumps(error)
    return error


@pytest.fixture
def stored(serve):
    """A client, and a way to see which files of uploads exist."""
    client = serve(max_upload_bytes=200_000)
    return client, lambda: [path.name for path in client.server.uploads.folder.iterdir() if path.name != ".lock"]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_every_way_to_name_a_video_gives_the_pipelines_answer(serve, model, clip):
    expected = model.ask(clip, QUESTION, num_frames=4, max_new_tokens=5)
    client = serve()
    openai_client = client_of(client)
    file_id = openai_client.files.create(file=clip.open("rb"), purpose="user_data").id
    for url in (clip.name, f"./{clip.name}", clip.as_uri(), data_url(clip), file_id):
        answer = openai_client.chat.completions.create(
            model="tiny", messages=about(url), max_tokens=5, extra_body={"liteframe": {"num_frames": 4}}
        )
        assert answer.choices[0].message.content == expected.text
        ours = answer.model_extra["liteframe"]
        assert (ours["num_frames"], ours["num_visual_tokens"]) == (4, 16)
        assert ours["seconds"] == expected.seconds
        assert ours["encoder"] == "teacher"
    part = {"type": "file", "file": {"file_id": file_id}}
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, part]}]
    answer = openai_client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=5, extra_body={"liteframe": {"num_frames": 4}}
    )
    assert answer.choices[0].message.content == expected.text
    assert openai_client.files.retrieve(file_id).bytes == clip.stat().st_size
    assert openai_client.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        openai_client.files.retrieve(file_id)


def test_tokens_are_counted_and_the_limit_is_told(serve, model, clip):
    client = client_of(serve())
    answer = client.chat.completions.create(
        model="tiny", messages=about(clip.name), max_tokens=3, extra_body={"liteframe": {"num_frames": 4}}
    )
    encoded = model.watch(clip, num_frames=4)
    prompt = model.language.prompt(encoded.visual, QUESTION)
    assert answer.usage.prompt_tokens == len(prompt.ids)
    assert answer.usage.completion_tokens == 3  # random weights do not end a turn by themselves
    assert answer.usage.total_tokens == len(prompt.ids) + 3
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_that_ends_itself_says_so(serve, clip):
    model = make_model()
    first = model.language.generate(model.watch(clip, num_frames=4).visual, QUESTION, max_new_tokens=1)
    assert not first.is_whole
    # Whatever this model says first is declared to end a turn.
    token = model.language.tokenizer(first.text, add_special_tokens=False)["input_ids"][0]
    model.language.model.generation_config.eos_token_id = token
    choice = serve(model).post(CHAT, json=request(clip.name)).json()["choices"][0]
    assert choice["finish_reason"] == "stop"


def test_the_pieces_of_a_stream_make_up_the_answer(serve, clip):
    client = client_of(serve())
    given = {"model": "tiny", "messages": about(clip.name), "max_tokens": 12}
    options = {"num_frames": 20, "progress": True}
    whole = client.chat.completions.create(**given, extra_body={"liteframe": {"num_frames": 20}})
    chunks = list(
        client.chat.completions.create(
            **given, stream=True, stream_options={"include_usage": True}, extra_body={"liteframe": options}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    with_choices = [chunk for chunk in chunks if chunk.choices]
    assert with_choices[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in with_choices]
    assert sum(bool(piece) for piece in pieces) > 1
    assert "".join(pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in with_choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert with_choices[-1].model_extra["liteframe"]["num_visual_tokens"] == 80


def test_progress_is_told_in_batches_where_it_is_asked_for(serve, clip):
    model = make_model()
    model.batch_frames = 16
    client = serve(model)
    for is_asked in (True, False):
        body = request(clip.name, f"Is it {is_asked}?", num_frames=20 - is_asked, stream=True)
        body["liteframe"]["progress"] = is_asked
        lines = [line for line in client.post(CHAT, json=body).text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        told = [json.loads(line[6:]).get("liteframe", {}).get("progress") for line in lines[:-1]]
        expected = [{"done": 16, "total": 19}, {"done": 19, "total": 19}] if is_asked else []
        assert [each for each in told if each] == expected


def test_a_second_question_encodes_nothing(serve, clip):
    model = make_model()
    encoded = []
    forward = type(model.encoder).forward
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    client = serve(model)
    first = client.post(CHAT, json=request(data_url(clip))).json()["liteframe"]
    assert (first["video_reused"], len(encoded)) == (False, 1)
    second = client.post(CHAT, json=request(data_url(clip), "And then?")).json()["liteframe"]
    assert (second["video_reused"], len(encoded)) == (True, 1)
    assert second["timings"]["decode"] == second["timings"]["encode"] == 0 < second["timings"]["prefill"]
    other = client.post(CHAT, json=request(data_url(clip), num_frames=5)).json()["liteframe"]
    assert (other["video_reused"], len(encoded)) == (False, 2)
    assert type(model.encoder).forward is forward
    metrics = client.get("/metrics").text
    assert 'liteframe_answers_total{video="encoded"} 2.0' in metrics
    assert 'liteframe_answers_total{video="reused"} 1.0' in metrics
    assert "liteframe_frames_encoded_total 9.0" in metrics
    assert "liteframe_visual_tokens_total 52.0" in metrics
    assert 'liteframe_stage_seconds_count{stage="encode"} 2.0' in metrics
    assert 'liteframe_requests_total{path="/v1/chat/completions",status="200"} 3.0' in metrics


def test_a_conversation_is_sent_as_it_is(serve, model, clip):
    messages = [
        {"role": "system", "content": "Be brief."},
        *about(clip.name, "What is shown?"),
        {"role": "assistant", "content": "a bar", "refusal": None, "annotations": []},
        {"role": "user", "content": QUESTION},
    ]
    body = {"model": "tiny", "messages": messages, "max_tokens": 5, "liteframe": {"num_frames": 4}}
    answer = serve().post(CHAT, json=body).json()
    dialogue = Dialogue(QUESTION, (("What is shown?", "a bar"),), "Be brief.")
    visual = model.watch(clip, num_frames=4).visual
    shown = model.language.prompts.visual_text(visual.slots, 4)
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{shown}\nWhat is shown?<|im_end|>\n<|im_start|>assistant\na bar<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.language.prompts.text(dialogue, visual.slots, 4) == expected
    assert (
        answer["choices"][0]["message"]["content"] == model.language.generate(visual, dialogue, max_new_tokens=5).text
    )
    assert answer["usage"]["prompt_tokens"] == len(model.language.prompts.encode(expected))


def test_what_was_lost_in_reading_is_told_each_time(serve, clip):
    client = serve()
    for question in ("What is shown?", "And then?"):
        body = client.post(CHAT, json=request(clip.name, question, num_frames=50)).json()
        assert body["liteframe"]["num_frames"] == 20
        assert body["liteframe"]["warnings"] == ["50 frames were wanted, 20 different ones exist at those times"]


def test_the_frames_that_are_looked_at_are_drawn(serve, clip):
    import io

    import PIL.Image

    client = serve()
    stored = upload(client, clip).json()
    assert (stored["liteframe"]["width"], stored["liteframe"]["height"], stored["purpose"]) == (128, 96, "vision")
    sheet = client.post(f"/v1/files/{stored['id']}/frames", json={"num_frames": 5}).json()
    seen = client.post(CHAT, json=request(stored["id"], num_frames=5)).json()["liteframe"]["seconds"]
    assert [frame["seconds"] for frame in sheet["frames"]] == seen
    assert (sheet["num_frames"], sheet["duration_seconds"]) == (5, 2.0)
    for frame in sheet["frames"]:
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(frame["image"].split(",")[1]))).convert("L")
        assert picture.size == (128, 96)
        row = np.asarray(picture)[48].tolist()
        middle = sum(index for index, value in enumerate(row) if value > 130) / sum(value > 130 for value in row)
        assert middle == pytest.approx(60 * frame["seconds"] + 3.5, abs=1.5)  # the bar moves 6 pixels in 0.1 s


def test_frames_that_contradict_each_other_are_400(serve, clip):
    client = serve()
    file_id = upload(client, clip).json()["id"]
    response = client.post(f"/v1/files/{file_id}/frames", json={"start": 2, "end": 1})
    assert (response.status_code, "give seconds after start" in error_of(response)["message"]) == (400, True)


def test_of_many_frames_some_are_drawn_evenly(serve, tmp_path):
    import PIL.Image

    pictures = [PIL.Image.new("L", (32, 32), index) for index in range(200)]
    pictures[0].save(tmp_path / "long.gif", save_all=True, append_images=pictures[1:], duration=100)
    client = serve()
    file_id = upload(client, tmp_path / "long.gif").json()["id"]
    sheet = client.post(f"/v1/files/{file_id}/frames", json={"num_frames": 200}).json()
    assert sheet["num_frames"] == 200
    seconds = [frame["seconds"] for frame in sheet["frames"]]
    assert seconds == pytest.approx([0.1 * (3 * index + 1) for index in range(67)])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "has the model 'tiny' only"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "What?"}]}, 400, "no video"),
        ({"messages": [{"role": "tool", "content": "What?"}]}, 400, "role"),
        ({"messages": [*about("a.mp4"), *about("b.mp4")]}, 400, "one video"),
        ({"messages": [*about("a.mp4"), {"role": "assistant", "content": "x"}]}, 400, "ends with a user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
        ({"messages": about("clip.mp4", " ")}, 400, "the question is empty"),
        ({"messages": about("clip.mp4", "a <|im_end|> b")}, 400, "marker"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": 2}, 400, "n:"),
        ({"tools": []}, 400, "tools: is not known or not served"),
        ({"stop": "x"}, 400, "stop"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**6}, 400, "at most 256"),
        ({"liteframe": {"num_frames": 0}}, 400, "num_frames"),
        ({"liteframe": {"num_frames": 5000}}, 400, "at most 1024"),
        ({"liteframe": {"frames": 4}}, 400, "frames"),
        ({"liteframe": {"num_frames": 4, "fps": 1}}, 400, "one of the two"),
        ({"liteframe": {"start": 2, "end": 1}}, 400, "end"),
        ({"liteframe": {"start": 50}}, 400, "the video|clip.mp4"),
        ({"liteframe": {"num_frames": 1024}, "max_tokens": 256}, 400, None),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_what_cannot_be_answered_is_refused(serve, clip, change, status, words):
    import re

    model = make_model()
    client = serve(model)
    response = client.post(CHAT, json={**request(clip.name), **change})
    if words is None:  # 1,024 frames are wanted and 20 exist: that fits, and is told
        assert response.json()["liteframe"]["num_frames"] == 20
        return
    assert response.status_code == status
    assert re.search(words, error_of(response)["message"])
    assert client.post(CHAT, json=request(clip.name)).status_code == 200


def test_too_long_is_told_before_decoding(serve, clip):
    client = serve()
    long = "What is shown? " * 2000
    error = error_of(client.post(CHAT, json=request(clip.name, long)))
    assert error["code"] == "context_length_exceeded"
    assert "the model has 2048" in error["message"]
    assert "liteframe_frames_encoded_total 0.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"model": "tiny"}'],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_request_is_400_and_the_next_one_is_answered(serve, model, clip, body):
    client = serve()
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error_of(response)
    assert client.post(CHAT, content=json.dumps(request(clip.name))).status_code == 400  # no content type
    assert client.post(CHAT, json=request(clip.name)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/files/file-x", "/v1/models/x", "/docs", "/static/../app.py", "/static/x"]
)
def test_what_is_not_there_is_404(serve, path):
    response = serve().get(path)
    assert response.status_code == 404
    error_of(response)


def test_a_wrong_method_is_405(serve):
    assert serve().get(CHAT).status_code == 405


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.mp4",
        "HTTPS://example.org/a.mp4",
        "rtsp://example.org/a",
        "concat:/etc/passwd",
        "//example.org/a.mp4",
        "file://example.org/a.mp4",
        "file:a.mp4?x",
        "data:video/mp4,x",
        "data:video/mp4;base64,%%%",
        "data:video/mp4;base64,",
        "data:video/mp4;base64,bm8gdmlkZW8=",
    ],
)
def test_what_is_not_supported_is_400_and_leaves_nothing(stored, url):
    client, files = stored
    response = client.post(CHAT, json=request(url))
    assert response.status_code == 400
    message = error_of(response)["message"]
    if "example.org" in url and not url.startswith("file"):
        assert "remote URLs are not fetched; upload the video to /v1/files" in message
    assert files() == []


def test_no_path_leads_out_of_the_allowed_folder(serve, clip, tmp_path):
    import shutil

    allowed, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    allowed.mkdir()
    outside.mkdir()
    for folder in (allowed, outside):
        shutil.copyfile(clip, folder / "clip.mp4")
    (allowed / "in.mp4").symlink_to(allowed / "clip.mp4")
    (allowed / "out.mp4").symlink_to(outside / "clip.mp4")
    (allowed / "folder").symlink_to(outside)
    (allowed / "loop").symlink_to(allowed / "loop")
    client = serve(allow_dirs=(allowed,))
    for url in ("clip.mp4", "in.mp4", (allowed / "clip.mp4").as_uri(), "../allowed/clip.mp4"):
        assert client.post(CHAT, json=request(url)).status_code == 200, url
    messages = set()
    for url in (
        "out.mp4", "folder/clip.mp4", "loop", "../allowed-not/clip.mp4", str(outside / "clip.mp4"), "none.mp4", ".", "",
        (outside / "clip.mp4").as_uri(), "file:///etc/passwd", "/etc/passwd",
        f"{allowed.as_uri()}/%2e%2e/allowed-not/clip.mp4",
        "clip.mp4\0", "clip.mp4/x", "x" * 5000, "file-0123456789abcdef0123456789abcdef",
    ):  # fmt: skip
        response = client.post(CHAT, json=request(url))
        assert response.status_code == 404, url
        messages.add(error_of(response)["message"])
    # What is there and not allowed looks as what is not there; only an id that is gone is told apart.
    assert len(messages) == 2


def test_a_playlist_reads_no_other_file(serve, clip, tmp_path):
    """A list in a stranger's upload, or beside the videos, would have FFmpeg open what it names."""
    (tmp_path / "secret.mp4").write_bytes(clip.read_bytes())
    texts = {
        "list.ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    }
    client = serve(allow_dirs=(tmp_path,))
    from liteframe.video.probe import probe

    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        response = client.post(CHAT, json=request(name))
        assert (response.status_code, error_of(response)["code"]) == (400, "video_not_a_video")
        assert upload(client, tmp_path / name).status_code == 400
    assert probe(tmp_path / "list.ffconcat").num_frames == 20  # so it is the server that refuses it


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_uploads_are_removed(stored, clip):
    client, files = stored
    file_id = upload(client, clip).json()["id"]
    assert len(files()) == 1
    assert client.post(CHAT, json=request(file_id)).status_code == 200
    assert client.post(CHAT, json=request(data_url(clip), "And then?")).status_code == 200
    assert len(files()) == 1  # that of the data: URL is gone
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert files() == []
    assert client.post(CHAT, json=request(file_id)).status_code == 404
    assert client.server.uploads.num_bytes == 0


def test_an_upload_that_is_too_large_is_413(stored, tmp_path):
    client, files = stored
    for size in (200_001, 1_000_000):
        (tmp_path / "large").write_bytes(bytes(size))
        response = upload(client, tmp_path / "large")
        assert response.status_code == 413
        assert "0.2 MB" in error_of(response)["message"]
    url = "data:video/mp4;base64," + base64.b64encode(bytes(200_001)).decode()
    assert client.post(CHAT, json=request(url)).status_code == 413
    assert files() == []
    assert client.server.uploads.num_bytes == 0


def test_a_head_that_is_too_large_is_431(serve):
    client = serve()
    assert client.get("/health", headers={"x-filler": "x" * 70_000}).status_code == 431
    half = {"x": "x" * 40_000}
    assert client.get("/health", params=half, headers=half).status_code == 431
    assert client.get("/health", headers={"x-filler": "x" * 60_000}).status_code == 200


def test_a_body_that_is_too_large_is_413(serve, clip):
    client = serve(max_body_bytes=1000)
    assert client.post(CHAT, json=request("x" * 2000)).status_code == 413
    chunks = iter([b'{"model": "', b"x" * 2000, b'"}'])  # no content-length
    assert client.post(CHAT, content=chunks, headers={"content-type": "application/json"}).status_code == 413
    assert client.post(CHAT, json=request(clip.name)).status_code == 200


def test_what_is_no_video_is_not_kept(stored, tmp_path):
    client, files = stored
    (tmp_path / "notes.txt").write_text("The minutes of the meeting.\n" * 50)
    (tmp_path / "empty").touch()
    for name, code in (("notes.txt", "video_not_a_video"), ("empty", "empty_file")):
        response = upload(client, tmp_path / name)
        assert (response.status_code, error_of(response)["code"]) == (400, code)
    assert files() == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("application/json", b"{}"),
    ],
    ids=["no boundary", "no form", "broken off", "no file", "json"],
)
def test_what_is_no_upload_is_400(stored, kind, body):
    client, files = stored
    response = client.post("/v1/files", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    error_of(response)
    assert files() == []


def test_a_body_that_does_not_come_is_408(listen):
    import socket

    server = Server(make_model(), "tiny", ServeSettings(upload_seconds=0.5))
    host, port = listen(server).removeprefix("http://").split(":")
    form = "content-type: multipart/form-data; boundary=b"
    begun = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'
    for path, kind, body in ((CHAT, "content-type: application/json", b"{"), ("/v1/files", form, begun)):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{kind}\r\ncontent-length: 1000\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
    assert server.uploads.num_bytes == 0


def test_reading_a_video_has_an_end(serve, clip):
    client = serve(decode_seconds=0.001)
    response = client.post(CHAT, json=request(clip.name))
    assert (response.status_code, error_of(response)["code"]) == (400, "video_hang")
    assert client.get("/health").json() == {"status": "ok"}


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429(serve, clip):
    model = make_model()
    gate = Gate(model)
    client = serve(model, queue_size=2)
    answers = []
    ask = lambda number: answers.append(client.post(CHAT, json=request(clip.name, num_frames=number)))  # noqa: E731
    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 2, 3)]
    threads[0].start()
    assert gate.entered.acquire(timeout=20)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 20
    while client.server.engine.num_waiting < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(openai.RateLimitError) as caught:
        client_of(client).chat.completions.create(model="tiny", messages=about(clip.name))
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120
    assert caught.value.code == "queue_full"
    assert "liteframe_queue_waiting 2.0" in client.get("/metrics").text
    gate.opened.set()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert sorted(answer.json()["liteframe"]["num_frames"] for answer in answers) == [1, 2, 3]
    assert client.post(CHAT, json=request(clip.name)).status_code == 200


def test_who_goes_away_is_not_waited_for(listen, clip):
    """Both the one that is being answered and the one in the queue; their data: URLs' files go, too."""
    import socket

    model = make_model()
    gate = Gate(model)
    server = Server(model, "tiny", ServeSettings(queue_size=1))
    address = listen(server)
    host, port = address.removeprefix("http://").split(":")

    def send(is_stream: bool) -> socket.socket:
        body = json.dumps(request(data_url(clip), stream=is_stream)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}"
        connection = socket.create_connection((host, int(port)))
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        return connection

    def files() -> list[str]:
        return [path.name for path in server.uploads.folder.iterdir() if path.name != ".lock"]

    def until(condition) -> None:
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert condition()

    running = send(True)
    assert gate.entered.acquire(timeout=20)
    waiting = send(False)
    until(lambda: server.engine.num_waiting == 1 and len(files()) == 2)
    waiting.close()
    until(lambda: server.engine.num_waiting == 0 and len(files()) == 1)
    running.close()
    until(lambda: len(files()) == 0)
    gate.opened.set()
    answer = client_of(address).chat.completions.create(model="tiny", messages=about(data_url(clip)), max_tokens=2)
    assert answer.usage.completion_tokens == 2


def test_a_fault_of_ours_is_500_and_the_next_one_is_answered(serve, clip, capfd):
    model = make_model()
    client = serve(model)
    watch = model.watch

    def broken(*arguments, **options):
        model.watch = watch
        raise KeyError("/home/secret")

    model.watch = broken
    response = client.post(CHAT, json=request(clip.name))
    assert response.status_code == 500
    assert "secret" not in error_of(response)["message"]
    assert "KeyError: '/home/secret'" in capfd.readouterr().err
    assert client.post(CHAT, json=request(clip.name)).status_code == 200


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for(serve, clip):
    client = serve(api_key="sesame", host="0.0.0.0")
    client.base_url = "http://192.0.2.1:8000"
    for path in ("/v1/models", "/metrics", "/v1/files/file-x", "/openapi.json"):
        response = client.get(path)
        assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert client.post(CHAT, json=request(clip.name)).status_code == 401
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        client_of(client, key="sesam").models.list()
    assert [model.id for model in client_of(client, key="sesame").models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost:9"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
    ids=str,
)
def test_pages_of_other_sites_are_kept_out(serve, headers, status):
    response = serve().get("/v1/models", headers=headers)
    assert response.status_code == status
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(serve):
    import re

    client = serve()
    page = client.get("/").text
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/static/")
        response = client.get(link)
        assert response.status_code == 200
        assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)[a-z]", response.text.replace("// ", ""))
    assert "<style" not in page and not re.search(r"\son\w+=|\sstyle=", page)  # what the policy forbids


def test_everything_to_be_used_has_a_name(serve):
    """Each input has a label, and each part of the page its heading."""
    from html.parser import HTMLParser

    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Reader().feed(serve().get("/").text)
    labelled = {values["for"] for tag, values in found if tag == "label" and "for" in values} | {"file"}  # inside one
    assert {values["id"] for tag, values in found if tag == "input"} == labelled
    ids = [values["id"] for _, values in found if "id" in values]
    assert len(ids) == len(set(ids))
    assert all(values["aria-labelledby"] in ids for tag, values in found if "aria-labelledby" in values)
    assert ("html", {"lang": "en"}) in found
