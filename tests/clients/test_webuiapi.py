"""The Python client of AUTOMATIC1111's web UI drives the worker."""

import base64
import io
import threading
import time

import pytest
import webuiapi
from PIL import Image

from worker import KEY

PROMPT = "a red circle on a white background"
FAST = {"steps": 4, "width": 64, "height": 64, "seed": 42}


@pytest.fixture
def api(worker):
    return webuiapi.WebUIApi("127.0.0.1", worker.port, username="anyone", password=KEY)


def red() -> Image.Image:
    return Image.new("RGB", (64, 64), (255, 0, 0))


def test_txt2img_tells_its_seeds(api):
    result = api.txt2img(prompt=PROMPT, negative_prompt="blue", batch_size=2, n_iter=2, **FAST)
    assert [image.size for image in result.images] == [(64, 64)] * 4
    assert result.info["all_seeds"] == [42, 43, 44, 45]
    assert result.info["seed"] == 42
    assert result.info["sampler_name"] == "Euler a"
    assert result.info["prompt"] == PROMPT
    assert [image.info["parameters"] for image in result.images] == result.info["infotexts"]
    assert result.parameters["steps"] == 4


def test_a_drawn_seed_makes_the_picture_again(api):
    drawn = api.txt2img(prompt=PROMPT, **FAST | {"seed": -1})
    again = api.txt2img(prompt=PROMPT, **FAST | {"seed": drawn.info["seed"]})
    assert drawn.image.tobytes() == again.image.tobytes()


def test_samplers_and_schedules_are_the_web_uis(api):
    names = api.util_get_sampler_names()
    assert {"Euler a", "Euler", "DPM++ 2M", "DDIM"} <= set(names)
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    chosen = api.txt2img(prompt=PROMPT, sampler_name="DPM++ 2M", scheduler="Karras", **FAST)
    assert chosen.info["sampler_name"] == "DPM++ 2M"
    assert chosen.info["extra_generation_params"]["Schedule type"] == "Karras"
    # The web UI's default for this sampler.
    automatic = api.txt2img(prompt=PROMPT, sampler_name="DPM++ 2M", **FAST)
    assert automatic.image.tobytes() == chosen.image.tobytes()


def test_a_subseed_varies_the_picture(api):
    plain = api.txt2img(prompt=PROMPT, **FAST)
    varied = api.txt2img(prompt=PROMPT, subseed=7, subseed_strength=0.3, **FAST)
    assert plain.image.tobytes() != varied.image.tobytes()
    assert (varied.info["subseed"], varied.info["subseed_strength"]) == (7, 0.3)


def test_a_second_pass_enlarges(api):
    result = api.txt2img(prompt=PROMPT, enable_hr=True, hr_scale=2, hr_upscaler=webuiapi.HiResUpscaler.Latent, **FAST)
    assert result.image.size == (128, 128)


def test_img2img_starts_from_the_picture(api):
    def distance(strength):
        result = api.img2img(images=[red()], prompt=PROMPT, denoising_strength=strength, **FAST)
        colour = result.image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        return sum(abs(a - b) for a, b in zip(colour, (255, 0, 0)))

    assert distance(0.25) < distance(1.0)


@pytest.mark.parametrize("full", [False, True])
def test_inpainting_keeps_what_is_black_in_the_mask(api, full):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    result = api.img2img(
        images=[red()], mask_image=mask, mask_blur=0, prompt="a blue square", inpaint_full_res=full,
        denoising_strength=1.0, **FAST
    )
    image = result.image.convert("RGB")
    kept = image.crop((0, 0, 32, 64))
    assert kept.tobytes() == red().crop((0, 0, 32, 64)).tobytes()
    assert image.crop((32, 0, 64, 64)).tobytes() != kept.tobytes()


def test_what_changes_the_picture_and_is_missing_is_refused(api):
    for fields, name in [
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["x"]}, "styles"),
        ({"script_name": "x"}, "script_name"),
        ({"sampler_name": "DPM fast"}, "sampler_name"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler"),
    ]:
        with pytest.raises(RuntimeError) as error:
            api.txt2img(prompt=PROMPT, **FAST | fields)
        status, body = error.value.args
        assert status == 422 and f'"errors":"{name}"' in body, body


def test_progress_shows_the_request_and_interrupt_ends_it(worker, api):
    done = []

    def generate():
        done.append(api.txt2img(prompt=PROMPT, **FAST | {"steps": 900}))

    assert api.get_progress()["state"]["job_count"] == 0
    thread = threading.Thread(target=generate)
    thread.start()
    seen = wait_for(lambda: api.get_progress(), lambda progress: progress["current_image"])
    assert 0 < seen["progress"] < 1
    assert seen["state"]["sampling_steps"] == 900
    Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))).load()
    started = time.monotonic()
    api.interrupt()
    thread.join(30)
    assert time.monotonic() - started < 10
    assert done[0].images == []
    assert api.get_progress()["progress"] == 0


def test_a_task_has_progress_of_its_own(worker, api):
    def task_progress(name):
        return worker.post("/internal/progress", json={"id_task": name, "id_live_preview": -1}).json()

    thread = threading.Thread(
        target=lambda: worker.post(
            "/sdapi/v1/txt2img", json={"prompt": PROMPT, "force_task_id": "task(a)", **FAST, "steps": 900}
        )
    )
    thread.start()
    seen = wait_for(lambda: task_progress("task(a)"), lambda task: task["active"] and task["live_preview"])
    assert seen["live_preview"].startswith("data:image/")
    assert not task_progress("task(b)")["active"]
    api.skip()
    thread.join(30)
    ended = task_progress("task(a)")
    assert ended["completed"] and not ended["active"]


def wait_for(read, holds, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = read()
        if holds(value):
            return value
        time.sleep(0.02)
    raise AssertionError(f"still {value}")


def test_a_picture_says_how_it_was_made(api):
    result = api.txt2img(prompt=PROMPT, **FAST)
    info = api.png_info(result.image)
    assert info.info == result.info["infotexts"][0]
    parameters = info.json["parameters"]
    assert (parameters["Seed"], parameters["Steps"], parameters["Size-1"]) == ("42", "4", "64")


def test_the_model_can_be_set_by_its_title(api):
    titles = api.util_get_model_names()
    api.util_set_model(titles[0])
    assert api.util_get_current_model().split(" [")[0] == titles[0].split(" [")[0]
    assert api.set_options({"sd_model_checkpoint": titles[0], "CLIP_stop_at_last_layers": 2}) is None
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})


def test_every_list_answers(api):
    api.util_wait_for_ready(0.1)
    for read in [
        api.get_samplers, api.get_schedulers, api.get_sd_models, api.get_sd_vae, api.get_upscalers,
        api.get_latent_upscale_modes, api.get_loras, api.get_embeddings, api.get_hypernetworks, api.get_face_restorers,
        api.get_realesrgan_models, api.get_prompt_styles, api.get_scripts, api.get_cmd_flags, api.get_memory,
    ]:
        assert isinstance(read(), (list, dict)), read
    api.refresh_checkpoints()
