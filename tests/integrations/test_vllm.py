"""Export for vLLM: the same logits from the plain checkpoint, and requests that vLLM's own steps turn into the prompt.

vLLM itself is not installed here. `Stand` does with a request what vLLM's ``/v1/completions`` does with one, step by
step, as its sources of November 2026 have it (``vllm/renderers/embed_utils.py``), and answers by transformers.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, InternVLConfig, PreTrainedModel

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.errors import CheckpointError, ContextError, InputError, VideoError
from liteframe.integrations.vllm_client import VllmClient, encode_tensor, request_body
from liteframe.integrations.vllm_export import export_vllm
from liteframe.language.loading import load_checkpoint
from liteframe.language.prompt import Dialogue
from liteframe.pipeline import VideoLLM
from tiny_internvl import make_checkpoint, make_config, make_model
from tiny_student import make_student

QUESTION = "How many shapes were shown?"


class Refused(Exception):  # noqa: N818
    """What vLLM answers with 400."""


class Stand:
    """Stands for ``vllm serve FOLDER --enable-prompt-embeds``."""

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ends = GenerationConfig.from_pretrained(folder).eos_token_id
        self.key = key
        self.bodies: list[dict] = []

    def prompt(self, encoded: str) -> torch.Tensor:
        """Base64 to ``[tokens, hidden]``, each check where vLLM has it."""
        buffer = io.BytesIO(base64.b64decode(encoded.encode(), validate=True))
        tensor = torch.load(buffer, weights_only=True, map_location=torch.device("cpu"))
        if not isinstance(tensor, torch.Tensor):
            raise Refused("no tensor")
        tensor = tensor.to_dense()
        if tensor.dim() > 2:
            tensor = tensor.squeeze(0)
        if tensor.dim() != 2 or tensor.shape[1] != self.model.config.hidden_size:
            raise Refused(f"`prompt_embeds` of shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise Refused("no floating-point type")
        return tensor.to(self.model.dtype)

    def complete(self, body: dict) -> dict:
        self.bodies.append(body)
        if body.get("model") != "exported":
            raise Refused(f"The model `{body.get('model')}` does not exist.")
        # The embeddings come first, then every text prompt: each is a prompt, and has a choice.
        prompts = body["prompt_embeds"] if isinstance(body["prompt_embeds"], list) else [body["prompt_embeds"]]
        assert body.get("prompt") is None
        choices = []
        for index, encoded in enumerate(prompts):
            embeds = self.prompt(encoded)[None]
            with torch.no_grad():
                ids = self.model.generate(
                    inputs_embeds=embeds,
                    attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                    do_sample=body.get("temperature", 1.0) > 0,
                    max_new_tokens=body.get("max_tokens", 16),
                    eos_token_id=self.ends,
                    pad_token_id=0,
                )
            text = self.tokenizer.decode(ids[0], skip_special_tokens=True)
            choices.append({"index": index, "text": text, "finish_reason": "stop", "logprobs": None})
        return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "exported", "choices": choices}


@pytest.fixture
def serve() -> Iterator:
    """Starts a `Stand` on a free port; gives its API's address."""
    running = []

    def start(stand: Stand) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def reply(self, status: int, values: object) -> None:
                data = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one(self, answer) -> None:
                if stand.key is not None and self.headers["Authorization"] != f"Bearer {stand.key}":
                    return self.reply(401, {"error": "Unauthorized"})
                try:
                    return self.reply(200, answer())
                except Refused as error:
                    return self.reply(400, {"error": {"message": str(error), "type": "BadRequestError", "code": 400}})

            def do_GET(self) -> None:
                models = {"object": "list", "data": [{"id": "exported", "object": "model"}]}
                self.handle_one(lambda: models if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/completions"
                self.handle_one(lambda: stand.complete(body))

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def exported(mini, tmp_path_factory) -> dict[str, Path]:
    """The miniature, exported with its teacher and with its student, whose adapter is then merged."""
    folder = tmp_path_factory.mktemp("vllm")
    for encoder in ("teacher", "liteframe"):
        report = export_vllm("mini", folder / encoder, encoder=encoder, dtype="float32")
        assert (report["encoder"], report["is_adapted"]) == (encoder, encoder == "liteframe")
        assert (report["architecture"], report["dtype"]) == ("Qwen2ForCausalLM", "float32")
        files = (folder / encoder).glob("*.safetensors")
        assert report["bytes"] == sum(file.stat().st_size for file in files) > report["video_bytes"]
    return {encoder: folder / encoder for encoder in ("teacher", "liteframe")}


@pytest.mark.parametrize("encoder", ["teacher", "liteframe"])
def test_the_plain_checkpoint_gives_the_same_logits(exported, clip, encoder):
    """Transformers' own Qwen2, read from the folder alone, on the very embeddings that our pipeline makes."""
    pipeline = VideoLLM.from_pretrained("mini", encoder=encoder, device="cpu", dtype="float32")
    video = pipeline.watch(clip, num_frames=8)
    language = pipeline.language
    plain = AutoModelForCausalLM.from_pretrained(exported[encoder], dtype=torch.float32).eval()
    assert type(plain).__name__ == "Qwen2ForCausalLM"
    with torch.no_grad():
        embeddings = language.splice(video.visual.embeddings, language.prompt(video.visual, QUESTION))
        expected = language.logits(video.visual, QUESTION)
        logits = plain(inputs_embeds=embeddings).logits[0]
        # Float32; our linear layers may round otherwise (`liteframe.packed`).
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.1
        sent = VllmClient(exported[encoder], device="cpu", dtype="float32")
        torch.testing.assert_close(sent.prompt_embeds(sent.watch(clip, num_frames=8), QUESTION), embeddings[0])
    other = "teacher" if encoder == "liteframe" else "liteframe"
    different = AutoModelForCausalLM.from_pretrained(exported[other], dtype=torch.float32).eval()
    with torch.no_grad():  # the adapter counts: with the other folder's weights it is not the same
        assert (different(inputs_embeds=embeddings).logits[0] - expected).abs().max() > 0.01


@pytest.mark.parametrize("encoder", ["teacher", "liteframe"])
def test_the_client_and_a_server_answer_as_the_pipeline_does(exported, serve, clip, encoder):
    stand = Stand(exported[encoder])
    client = VllmClient(exported[encoder], serve(stand), device="cpu", dtype="float32")
    pipeline = VideoLLM.from_pretrained("mini", encoder=encoder, device="cpu", dtype="float32")
    for question in (QUESTION, "What was shown?"):
        expected = pipeline.ask(clip, question, num_frames=8, max_new_tokens=12).text
        assert expected
        assert client.ask(clip, question, num_frames=8, max_new_tokens=12) == expected
    video = client.watch(clip, num_frames=8)
    assert client.ask(video, QUESTION) == pipeline.ask(pipeline.watch(clip, num_frames=8), QUESTION).text
    assert set(stand.bodies[0]) == {"model", "prompt_embeds", "max_tokens", "temperature", "top_p"}
    assert stand.bodies[0]["max_tokens"] == 12
    # Rows of the model's width, and nothing else: no whole storage behind a view.
    sent = stand.prompt(stand.bodies[0]["prompt_embeds"])
    assert len(base64.b64decode(stand.bodies[0]["prompt_embeds"])) < sent.numel() * 4 + 4096


def test_earlier_turns_are_in_the_prompt(exported, clip):
    client = VllmClient(exported["teacher"], device="cpu")
    video = client.watch(clip, num_frames=4)
    dialogue = Dialogue("And then?", earlier=((QUESTION, "two"),))
    language = client.pipeline.language
    ids = language.prompt(video.visual, dialogue).ids
    embeddings = client.prompt_embeds(video, dialogue)
    table = language.model.get_input_embeddings().weight
    written = ids != language.prompts.image_token_id
    torch.testing.assert_close(embeddings[written], table[ids[written]].detach())
    assert len(embeddings) == len(ids)


def test_openais_client_sends_the_same_request(exported, serve, clip):
    """As vLLM's own example does it: no text, the embeddings in the extra body."""
    stand = Stand(exported["teacher"])
    url = serve(stand)
    client = VllmClient(exported["teacher"], url, model="exported", device="cpu", dtype="float32")
    embeddings = client.prompt_embeds(client.watch(clip, num_frames=4), QUESTION)
    theirs = openai.OpenAI(base_url=url, api_key="none", max_retries=0).completions.create(
        model="exported",
        prompt=None,
        max_tokens=8,
        temperature=0.0,
        extra_body={"prompt_embeds": encode_tensor(embeddings)},
    )
    assert theirs.choices[0].text == client.ask(clip, QUESTION, num_frames=4, max_new_tokens=8)
    both = request_body("exported", embeddings, max_tokens=8)
    assert both["prompt_embeds"] == stand.bodies[0]["prompt_embeds"] and "prompt" not in both


def test_the_script_in_the_folder_runs(exported, serve, clip):
    url = serve(Stand(exported["teacher"]))
    command = [sys.executable, str(exported["teacher"] / "ask_vllm.py"), str(clip), QUESTION, url]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    frames = VllmClient(exported["teacher"], url, device="cpu").ask(clip, QUESTION, num_frames=64)
    assert ran.stdout == f"{frames}\n"


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_video_side_is_small_and_no_model_to_ask(exported):
    tensors = load_file(exported["liteframe"] / "video" / "model.safetensors")
    assert not [key for key in tensors if ".layers." in key or ".layer." in key]
    with_teacher = load_file(exported["teacher"] / "video" / "model.safetensors")
    assert len({key.split(".layer.")[1].split(".")[0] for key in with_teacher if ".layer." in key}) == 8
    with pytest.raises(CheckpointError, match="is the video side of an export"):
        load_checkpoint(exported["teacher"] / "video")


def test_what_servers_read_besides_the_weights(exported):
    config = json.loads((exported["teacher"] / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "float32" and "rope_scaling" not in config
    ends = GenerationConfig.from_pretrained(exported["teacher"]).eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(exported["teacher"])
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(load_checkpoint("mini").folder).chat_template


@pytest.mark.parametrize("method", ["pooled", "visionzip:tokens=4"])
@pytest.mark.parametrize("layout", ["untied", "qwen3"])
def test_other_language_models_and_methods(clip, tmp_path, method, layout):
    """An untied head and scaled positions, as the 8B has them; InternVL3.5's language model; encoders besides ours."""
    checkpoint, config = make_checkpoint(), make_config()
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    changes = {"qwen3": {"model_type": "qwen3"}, "untied": {"rope_parameters": scaling}}[layout]
    text = {**config.text_config.to_dict(), **changes}
    checkpoint.model = make_model(InternVLConfig.from_dict({**config.to_dict(), "text_config": text}))
    pipeline = VideoLLM(checkpoint, build_encoder("teacher", EncoderSource.of(checkpoint.model)))
    pipeline.save_pretrained(tmp_path / "model")
    report = export_vllm(tmp_path / "model", tmp_path / "out", encoder=method, dtype="float32")
    assert report["architecture"] == {"untied": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[layout]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert layout == "qwen3" or (written["rope_theta"], written["rope_scaling"]["factor"]) == (1e6, 2.0)
    ours = VideoLLM.from_pretrained(tmp_path / "model", encoder=method, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    client = VllmClient(tmp_path / "out", device="cpu")
    with torch.no_grad():
        expected = ours.language.logits(ours.watch(clip, num_frames=4).visual, QUESTION)
        embeddings = client.prompt_embeds(client.watch(clip, num_frames=4), QUESTION)
        torch.testing.assert_close(plain(inputs_embeds=embeddings[None]).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_a_student_of_ones_own_and_half_precision(clip, tmp_path):
    checkpoint = make_checkpoint()
    pipeline = VideoLLM(checkpoint, build_encoder("teacher", EncoderSource.of(checkpoint.model)))
    pipeline.save_pretrained(tmp_path / "model")
    make_student().save_pretrained(tmp_path / "student")
    report = export_vllm(tmp_path / "model", tmp_path / "out", encoder=str(tmp_path / "student"))
    assert (report["dtype"], report["encoder"]) == ("bfloat16", "liteframe")
    tensors = {
        **load_file(tmp_path / "out" / "model.safetensors"),
        **load_file(tmp_path / "out" / "video" / "model.safetensors"),
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    client = VllmClient(tmp_path / "out", device="cpu")
    ours = VideoLLM.from_pretrained(tmp_path / "model", encoder=str(tmp_path / "student"), device="cpu")
    video, expected = client.watch(clip, num_frames=8), ours.watch(clip, num_frames=8)
    assert video.num_frames == 8 and video.visual.num_tokens == expected.visual.num_tokens == 2
    # Weights rounded to 8 bits of mantissa, through a dozen layers.
    torch.testing.assert_close(video.visual.embeddings, expected.visual.embeddings, atol=0.1, rtol=0.1)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(CheckpointError, match="full: exists and is not empty"):
        export_vllm("mini", tmp_path / "full")
    for options, why in (
        ({"encoder": "fastv"}, "drops tokens inside the language model"),
        ({"encoder": "nonsense"}, "unknown"),
        ({"dtype": "int8"}, "unknown"),
    ):
        with pytest.raises(InputError, match=why):
            export_vllm("mini", tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="no such folder"):
        export_vllm(tmp_path / "none", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_the_server_says_is_one_line(exported, serve, clip, tmp_path):
    folder = exported["teacher"]
    url = serve(Stand(folder, key="sesame"))
    client = VllmClient(folder, url, api_key="sesame", device="cpu")
    video = client.watch(clip, num_frames=4)
    assert client.ask(video, QUESTION, max_new_tokens=4) is not None
    for other, why in (
        (VllmClient(folder, url, device="cpu"), "refused with 401"),
        (VllmClient(folder, url, api_key="sesame", model="gpt", device="cpu"), "refused with 400: The model `gpt`"),
        (VllmClient(folder, "http://127.0.0.1:9/v1", device="cpu"), "cannot be reached .*vllm serve"),
        (VllmClient(folder, "nowhere", device="cpu"), "no address"),
        (VllmClient(folder, url.removesuffix("/v1"), api_key="sesame", device="cpu"), "lists no model"),
    ):
        with pytest.raises(InputError, match=why) as raised:
            other.ask(video, QUESTION)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="is encoded already"):
        client.ask(video, QUESTION, num_frames=4)
    with pytest.raises(InputError, match="is empty"):
        client.ask(video, " ")
    with pytest.raises(InputError, match="max_new_tokens 0"):
        client.ask(video, QUESTION, max_new_tokens=0)
    with pytest.raises(VideoError):
        client.ask(tmp_path / "none.mp4", QUESTION)
    with pytest.raises(ContextError, match="no frame fits"):
        client.ask(clip, QUESTION, num_frames=4, max_new_tokens=20_000)
    with pytest.raises(CheckpointError, match="has no video/"):
        VllmClient(tmp_path)
