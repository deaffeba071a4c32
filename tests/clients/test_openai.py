"""OpenAI's own client drives the worker: pictures, edits, variations, events, errors."""

import base64
import io
import urllib.request

import openai
import pytest
from PIL import Image

from worker import KEY, headers

PROMPT = "a red circle on a white background"
FAST = {"num_inference_steps": 4, "seed": 42}


@pytest.fixture
def client(worker):
    return openai.OpenAI(base_url=worker.url + "/v1", api_key=KEY, max_retries=0)


def decoded(b64_json: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def picture(mode: str = "RGB", colour=(255, 0, 0), size=(64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def half_transparent() -> bytes:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()]


def test_generations_repeat_with_their_seed(client):
    def generate(seed):
        return client.images.generate(prompt=PROMPT, size="64x64", n=2, extra_body=FAST | {"seed": seed})

    reply = generate(42)
    first, second = [decoded(image.b64_json) for image in reply.data]
    assert first.size == second.size == (64, 64)
    assert first.tobytes() != second.tobytes()
    assert (reply.size, reply.output_format, reply.background) == ("64x64", "png", "opaque")
    assert [image.seed for image in reply.data] == [42, 43]
    assert f"Seed: {reply.data[0].seed}" in first.info["parameters"]
    # Picture i is drawn from seed + i, alone or among others.
    assert decoded(generate(43).data[0].b64_json).tobytes() == second.tobytes()


def test_an_address_serves_the_picture(client):
    reply = client.images.generate(prompt=PROMPT, size="64x64", response_format="url", extra_body=FAST)
    request = urllib.request.Request(reply.data[0].url, headers=headers())
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"] == "image/png"
        assert Image.open(response).size == (64, 64)


@pytest.mark.parametrize("output_format, name", [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_come_in_the_format_that_was_asked_for(client, output_format, name):
    reply = client.images.generate(prompt=PROMPT, size="64x64", output_format=output_format, extra_body=FAST)
    assert decoded(reply.data[0].b64_json).format == name


def test_events_show_the_picture_as_it_comes(client):
    stream = client.images.generate(
        prompt=PROMPT, size="64x64", stream=True, partial_images=3, extra_body=FAST | {"num_inference_steps": 8}
    )
    events = list(stream)
    partial, completed = events[:-1], events[-1]
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert completed.type == "image_generation.completed"
    files = [event.b64_json for event in events]
    assert len(set(files)) == 4, "every one is another picture"
    assert all(decoded(file).size == (64, 64) for file in files)
    whole = client.images.generate(prompt=PROMPT, size="64x64", extra_body=FAST | {"num_inference_steps": 8})
    assert completed.b64_json == whole.data[0].b64_json
    assert completed.usage.total_tokens == 0


def test_an_edit_repaints_what_is_transparent(client):
    image, mask = picture(), half_transparent()
    reply = client.images.edit(
        image=("image.png", image), mask=("mask.png", mask), prompt="a blue square", size="64x64", extra_body=FAST
    )
    assert decoded(reply.data[0].b64_json).size == (64, 64)


def test_an_edit_without_a_mask_starts_from_the_whole_picture(client):
    def edit(strength):
        reply = client.images.edit(
            image=("image.png", picture()), prompt=PROMPT, extra_body=FAST | {"strength": strength}
        )
        return decoded(reply.data[0].b64_json).convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))

    little, much = edit(0.25), edit(1.0)
    distance = [sum(abs(a - b) for a, b in zip(colour, (255, 0, 0))) for colour in (little, much)]
    assert distance[0] < distance[1], f"{little} is not closer to red than {much}"


def test_an_edit_sends_events(client):
    stream = client.images.edit(
        image=("image.png", picture()), prompt=PROMPT, stream=True, partial_images=1, extra_body=FAST | {"strength": 1.0}
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_variation_needs_no_prompt(client):
    reply = client.images.create_variation(image=("image.png", picture()), n=2, size="64x64", extra_body=FAST)
    assert [decoded(image.b64_json).size for image in reply.data] == [(64, 64)] * 2


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"background": "transparent"}, "background"),
        ({"quality": "high"}, "quality"),
        ({"n": 11}, "n"),
        ({"size": "65x64"}, "size"),
        ({"extra_body": {"guidence_scale": 3}}, "guidence_scale"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps"),
        ({"extra_body": {"scheduler": "none"}}, "scheduler"),
    ],
)
def test_a_wrong_field_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt=PROMPT, **fields)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_a_wrong_mask_is_named(client):
    for mask in [picture(), picture("RGBA", (0, 0, 0, 0), (32, 32)), b"no picture"]:
        with pytest.raises(openai.BadRequestError) as error:
            client.images.edit(image=("i.png", picture()), mask=("m.png", mask), prompt=PROMPT)
        assert error.value.param == "mask"


def test_an_unknown_model_and_a_wrong_key_have_their_own_errors(worker, client):
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(prompt=PROMPT, model="gpt-image-1")
    assert error.value.code == "model_not_found"
    stranger = openai.OpenAI(base_url=worker.url + "/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt=PROMPT)


def test_a_repeated_request_with_a_key_makes_one_job(worker, client):
    def generate():
        return client.images.generate(
            prompt=PROMPT, size="64x64", extra_body={"num_inference_steps": 4}, extra_headers={"Idempotency-Key": "once"}
        )

    first, again = generate(), generate()
    assert first.data[0].b64_json == again.data[0].b64_json
