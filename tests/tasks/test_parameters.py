import re
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdjax.diffusion.tables import samplers
from sdjax.errors import SdjaxError
from sdjax.image.metadata import read_parameters
from sdjax.image.parameters import parameters_text, parse_parameters
from sdjax.image.png import save_png
from sdjax.tasks.parameters import FIELDS, describe, understand

prompts = st.text(st.characters(codec="utf-8")).filter(lambda text: "Negative prompt:" not in text)


def stripped(text: str) -> str:
    """A prompt as the web UI reads it: every line stripped, and no blank lines before it."""
    return "\n".join(line.strip() for line in re.split("\r\n?|\n", text)).lstrip()


#: as AUTOMATIC1111's web UI writes it (modules/processing.py create_infotext)
WEB_UI = """a (red:1.2) apple,
BREAK on a table
Negative prompt: blurry, text,
worst quality
Steps: 20, Sampler: DPM++ 2M SDE Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, \
Model: v1-5-pruned, Denoising strength: 0.7, Lora hashes: "one: 12ab, two: 34cd", Version: v1.6.0"""


def test_text():
    text = parameters_text("a cat — ねこ", "dog", Steps=20, Sampler="ddim", CFG_scale=7.5, Eta=None, Size="64x64")
    assert text == "a cat — ねこ\nNegative prompt: dog\nSteps: 20, Sampler: ddim, CFG scale: 7.5, Size: 64x64"
    assert parameters_text("", Steps=1, Model="a, b: c", Eta=1.0) == '\nSteps: 1, Model: "a, b: c", Eta: 1'


@given(prompts, prompts, st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False))
def test_round_trip(prompt, negative, model, scale):
    text = parameters_text(prompt, negative, Steps=20, Model=model, CFG_scale=scale)
    found = parse_parameters(text)
    assert [part.strip() for part in found[:2]] == [stripped(prompt).strip(), stripped(negative).strip()]
    assert set(found[2]) == {"Steps", "Model", "CFG scale"}
    assert found[2]["Model"] == model and float(found[2]["CFG scale"]) == scale


@given(
    prompts,
    st.sampled_from(sorted(samplers)),
    st.integers(1, 1000),
    st.integers(0, 2**32 - 1),
    st.none() | st.floats(0, 1),
)
def test_arguments_come_back(prompt, sampler, steps, seed, eta):
    arguments = {
        "prompt": prompt,
        "negative_prompt": "dog",
        "sampler": sampler,
        "steps": steps,
        "guidance_scale": 7.5,
        "sigmas": samplers[sampler].sigmas[steps % len(samplers[sampler].sigmas)],
    } | ({} if eta is None else {"eta": eta})
    found, rest = understand(describe(arguments, seed, (64, 32), "emoji"))
    if samplers[sampler].eta is None and arguments.pop("eta", None):
        assert rest.pop("Eta")
    arguments = {"eta": found.get("eta"), **arguments} if "eta" in found else arguments
    found["prompt"], wanted = found["prompt"].strip(), arguments | {"prompt": stripped(prompt).strip()}
    wanted |= {"seed": seed, "width": 64, "height": 32}
    assert {"sigmas": "default"} | found == wanted and rest == {"Model": "emoji"}


@pytest.mark.parametrize("embedding", [("a.pt",), ("b, c.pt", 'd".safetensors')])
def test_all_arguments_come_back(embedding):
    several = {
        "guidance_interval": (0.3, 1e-7),
        "embedding": embedding,
        "lora": embedding,
        "watermark": True,
        "dtype": "bfloat16",
    }
    pairs = (
        "original_size",
        "crop",
        "target_size",
        *(f"negative_{n}" for n in ("original_size", "crop", "target_size")),
    )
    several |= {"zero_negative": False, **dict.fromkeys(pairs, (3, 4))}
    several |= {"hires_upscale": "pixels"}
    skipped = {*several, "sdxl_clip_skip"}  # which is another argument's
    arguments = {
        "prompt": "a",
        "negative_prompt": "",
        "steps": 9,
        "sampler": "euler_a",
        "guidance_scale": -1e-7,
        **{option.name: option.read("3") for option in FIELDS if not option.write and option.name not in skipped},
        **several,
    }
    found, rest = understand(describe(arguments, 0, (8, 8), "m", "folder, of: models"))
    assert arguments.items() <= found.items() and rest == {"Model": "m", "Source": "folder, of: models"}
    assert understand(describe({"prompt": "", "sdxl_clip_skip": 2}, 0, (8, 8), "m"))[0]["clip_skip"] == 2
    defaults = {option.name: option.default for option in FIELDS if not option.write}
    last = f"Seed: 0, Size: 8x8, Model hash: 0123456789, Model: m, Version: sdjax {version('sdjax')}"
    assert describe(arguments | defaults, 0, (8, 8), "m", "m", "0123456789").endswith(last)


def test_a_web_ui_s_text():
    found, rest = understand(WEB_UI)
    assert found == {
        "prompt": "a (red:1.2) apple,\nBREAK on a table",
        "negative_prompt": "blurry, text,\nworst quality",
        "steps": 20,
        "sampler": "dpmpp_2m_sde",
        "sigmas": "karras",
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "strength": 0.7,
    }
    assert rest == {
        "Model hash": "45dee52b",
        "Model": "v1-5-pruned",
        "Lora hashes": "one: 12ab, two: 34cd",
    }


@pytest.mark.parametrize(
    "written, ours",
    [
        ("Euler a", "euler_a"),
        ("Euler", "euler"),
        ("k_euler_a", "euler_a"),
        ("LMS", "lms"),
        ("Heun", "heun"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("DDIM", "ddim"),
        ("PLMS", "plms"),
        ("UniPC", "unipc"),
        ("LCM", "lcm"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM++ 2S a", "dpmpp_2s_a"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        ("DPM2", "dpm2"),
        ("DPM2 a", "dpm2_a"),
        ("DEIS", "deis"),
        ("k_dpm_2_a", "dpm2_a"),
        ("dpm_2", "dpm2"),  # ComfyUI's, from here on
        ("dpm_2_ancestral", "dpm2_a"),
        ("dpmpp_2s_ancestral", "dpmpp_2s_a"),
        ("euler_ancestral", "euler_a"),
        ("dpmpp_sde_gpu", "dpmpp_sde"),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde"),
        ("uni_pc", "unipc"),
        *[(name, name) for name in samplers],
    ],
)
@pytest.mark.parametrize(
    "schedule, sigmas",
    [
        ("", "default"),
        (" Karras", "karras"),
        (" Exponential", "exponential"),
        (", Schedule type: Karras", "karras"),
        (", Schedule type: Exponential", "exponential"),
        (", Schedule type: SGM Uniform", "sgm_uniform"),
        (", Schedule type: sgm_uniform", "sgm_uniform"),
        (", Schedule type: Beta", "beta"),
        (", Schedule type: Uniform", "default"),
        (", Schedule type: normal", "default"),
        (", Schedule type: Automatic", None),
    ],
)
def test_sampler_names(written, ours, schedule, sigmas):
    """ "Automatic" means another schedule for some, as in the web UI (modules/sd_samplers_kdiffusion.py since 1.9)."""
    found, rest = understand(f"a cat\nSteps: 20, Sampler: {written}{schedule}, Seed: 1")
    exponential = dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), "exponential")
    automatic = exponential | dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a"), "karras")
    assert found["sampler"] == ours and ours in samplers and rest == {}
    assert found.get("sigmas", "default") == (automatic.get(ours, "default") if sigmas is None else sigmas)


#: of modules/sd_samplers_kdiffusion.py, sd_samplers_timesteps.py and sd_samplers_lcm.py; DDPM and DEIS are Forge's
WEB_UI_LABELS = {"DPM++ 2M", "DPM++ 2M SDE", "Euler a", "Euler", "LMS", "Heun", "DDIM", "PLMS", "UniPC", "LCM", "DDPM"}
WEB_UI_LABELS |= {"DPM++ SDE", "DPM++ 2S a", "DPM++ 3M SDE", "DPM2", "DPM2 a", "DEIS"}

#: of modules/sd_schedulers.py
WEB_UI_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform", "beta": "Beta"}


@pytest.mark.parametrize("sigmas", ["default", *WEB_UI_SCHEDULES])
@pytest.mark.parametrize("sampler", samplers)
def test_labels(sampler, sigmas):
    """What the web UI reads back: its own label, and a schedule that it would not take by itself."""
    settings = {"prompt": "a", "sampler": sampler, "sigmas": sigmas, "guidance_scale": 7.5}
    text = describe(settings, 1, (8, 8), "m")
    fields = parse_parameters(text)[2]
    assert fields["Sampler"] == samplers[sampler].label != "" and fields["Sampler"] in WEB_UI_LABELS
    wanted = WEB_UI_SCHEDULES.get(sigmas, "Uniform" if samplers[sampler].karras else None)
    assert fields.get("Schedule type") == wanted
    found, rest = understand(text)
    assert found["sampler"] == sampler and found.get("sigmas", "default") == sigmas and rest == {"Model": "m"}


def test_what_cannot_be_understood_is_named():
    assert understand("a\nSteps: 2, Schedule type: Turbo")[1] == {"Schedule type": "Turbo"}
    for text, message in [
        ("a cat", "Steps: "),
        ("", "Steps: "),
        ("a\nSteps: many, Seed: 1", "Steps: 'many'"),
        ("a\nSteps: 2, Size: 512", "Size: '512'"),
        ("a\nSteps: 2, CFG scale: x", "CFG scale: 'x'"),
    ]:
        with pytest.raises(SdjaxError, match=message):
            understand(text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        found, _ = understand(text)
        assert "prompt" in found
    except SdjaxError as error:
        assert "\n" not in str(error)


def test_files(tmp_path):
    save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", "ねこ\nSteps: 1")
    assert read_parameters(tmp_path / "a.png") == "ねこ\nSteps: 1"
    save_png(Image.new("RGB", (2, 2)), tmp_path / "bare.png")
    (tmp_path / "broken.png").write_text("no picture")
    for name, message in [
        ("bare.png", "no `parameters`"),
        ("broken.png", "not a readable picture"),
        ("none.png", "No such file"),
    ]:
        with pytest.raises(SdjaxError, match=f"{name}: .*{message}"):
            read_parameters(tmp_path / name)


# ---- as the web UI's parser, modules/infotext_utils.py parse_generation_parameters

SETTINGS = "Steps: 20, Seed: 1, Size: 8x8"


@pytest.mark.parametrize(
    "text, prompt, negative, later",
    [
        (f"a cat\nNegative prompt:dog\n{SETTINGS}", "a cat", "dog", None),
        (f"a cat\nNegative prompt: dog\nbird\n{SETTINGS}", "a cat", "dog\nbird", None),
        (f"  a cat\n\tNegative prompt:\tdog \n {SETTINGS}", "a cat", "dog", None),
        (f"a cat\r\nNegative prompt: dog\r\n{SETTINGS}\r\n", "a cat", "dog", None),
        (f"a cat\rNegative prompt: dog\r{SETTINGS}", "a cat", "dog", None),
        (f"a cat\n{SETTINGS}\n\n  \n", "a cat", "", None),
        (f"\n\na cat\n{SETTINGS}", "a cat", "", None),
        (f"a cat\n{SETTINGS}\nTemplate: a __pet__\nmore", "a cat", "", "Template: a __pet__\nmore"),
        (f"Steps: up the hill\n{SETTINGS}", "Steps: up the hill", "", None),
        (f"at 12:30, a cat\n{SETTINGS}", "at 12:30, a cat", "", None),
        (f"Negative prompt: dog\n{SETTINGS}", "", "dog", None),
        (f"a cat, not a Negative prompt: dog\n{SETTINGS}", "a cat, not a Negative prompt: dog", "", None),
        (f"a cat\nNegative prompt: dog\nNegative prompt: bird\n{SETTINGS}", "a cat", "dog\nbird", None),
        ("a cat\nSteps: 20", "a cat", "", None),
        (SETTINGS, "", "", None),
    ],
)
def test_lines_are_read_as_the_web_ui_reads_them(text, prompt, negative, later):
    found, rest = understand(text)
    assert (found["prompt"], found["negative_prompt"], found["steps"]) == (prompt, negative, 20)
    assert rest == ({} if later is None else {"Lines after the settings": later})


@pytest.mark.parametrize(
    "fields, left, rest",
    [
        ("Seed: -1", {}, {"Seed": "-1"}),
        ("Seed: 4294967296", {}, {"Seed": "4294967296"}),
        ("Seed: 4294967295", {"seed": 2**32 - 1}, {}),
        ("Sampler: Euler, Eta: 0.5", {"sampler": "euler"}, {"Eta": "0.5"}),
        ("Sampler: Euler, Eta: 0", {"sampler": "euler", "eta": 0.0}, {}),
        ("Sampler: DDIM, Eta: 0.5", {"sampler": "ddim", "eta": 0.5}, {}),
        ("Eta: 0.5", {"eta": 0.5}, {}),
        ("Sampler: DPM adaptive, Eta: 0.5", {"eta": 0.5}, {"Sampler": "DPM adaptive"}),
        (r'Lora hashes: "a: 1, b: \"2\"", Seed: 3', {"seed": 3}, {"Lora hashes": 'a: 1, b: "2"'}),
    ],
)
def test_what_is_not_ours_is_told_and_left_out(fields, left, rest):
    found, told = understand(f"a cat\nSteps: 20, {fields}")
    assert ({"prompt": "a cat", "negative_prompt": "", "steps": 20} | left, rest) == (found, told)
