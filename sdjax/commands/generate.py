"""Text to image: python sample/generate.py "a red apple" --steps 20 --num-images 4 --out out

Writes OUT/00000-seed<seed>.png and so on, each with its settings in the PNG's `parameters` text, and OUT/sheet.png if
there are several pictures. Numbers continue after the pictures that are in OUT already.

--init-image F [--strength S] [--mask F]   starts from a picture; with --mask repaints it where the mask is white
--control F --control-image P             a ControlNet or T2I-Adapter, and the picture that steers it
--image-prompt F --image-prompt-encoder D --image-prompt-image P   an IP-Adapter, its image tower, and what it sees
--from PICTURE.png                         takes the settings from a picture's text, a web UI's too; options override
--classes 207,360 | --layout boxes.json | --map map.png | --depth depth.png | --lowres small.png
                                           what models of these are asked for
--grid "guidance_scale=3,5" --grid seed=0..3    all combinations; the last axis runs along the columns of the sheet
--prompts-file F                           picture i has prompt i and seed + i; all devices and processes share the
                                           work, OUT/manifest.jsonl records it, after a kill the same command goes on
"""

from dataclasses import replace

from sdjax.commands.command_line import Progress, model_flag
from sdjax.commands.conditions import FILES, check_model, check_negatives, check_one_size, lines_of
from sdjax.commands.controls import OF_TASKS, settings_of_controls
from sdjax.commands.generate_options import NAMES, PARTS, Options, check_options, with_names
from sdjax.commands.generate_options import settings_of_picture as defaults  # noqa: F401  what --from gives, for `run`
from sdjax.commands.image_prompts import settings_of_image_prompts
from sdjax.commands.loras import add_loras, settings_of_loras
from sdjax.commands.saving import read_picture, save_next, save_sheet
from sdjax.commands.task import Task
from sdjax.devices.host import return_memory
from sdjax.errors import flags_of, loading, prefixed
from sdjax.files import check_folder


def main(options: Options) -> None:
    """Text to image."""
    from sdjax.commands.grid import read_axes
    from sdjax.files import read_prompts

    options = with_names(options)
    check_options(options)
    with prefixed("--"):
        axes = read_axes(options.grid)
    lines = read_prompts(options.prompts_file) if options.prompts_file else None
    image, mask = (read_picture(name, getattr(options, name)) for name in ("init_image", "mask"))
    check_folder(options.out)

    import sdjax
    from sdjax.devices.processes import start_processes

    start_processes(options.coordinator, options.num_processes, options.process_id)
    return_memory()
    with loading():
        parts = {name: getattr(options, name) for name in PARTS}
        sd = sdjax.load(options.model, dtype=options.dtype, config=options.config, **parts)
    with prefixed("--refiner: "):
        refiner = options.refiner and sdjax.load(options.refiner, dtype=options.dtype)
    with prefixed("--embedding "):
        for path in options.embedding:
            sd = sdjax.add_embedding(sd, path)
    with prefixed("--lora "):
        sd = add_loras(sd, options.lora)
    own = ("refiner", "strength", "feather", "mask_cells", "mask", "hires_steps", "classes", "layout", "noise_level")
    with model_flag(), flags_of((*NAMES, *OF_TASKS, "image_prompt", *own, *FILES)):
        prompts = lines_of(sd.config, options, lines)
        check_model(sd.config, options, axes)
        if lines is not None and sd.config.text is not None:
            check_negatives(options.prompts_file, lines)
        task = Task(sd, options, image, mask, refiner)
        canvas = task.width, task.height
        task.take_size(prompts)
        check_one_size(sd.config, options, canvas, (task.width, task.height))
        if options.prompts_file:
            draw_batch(task, prompts)
        elif axes:
            draw_grid(task, prompts[0], axes)
        else:
            draw(task, prompts)


def draw(task: Task, prompts: list[str]) -> None:
    """Draws --num-images pictures of each line, saves each as soon as it is done, and a sheet of them at the end."""
    from sdjax.image.sheets import contact_sheet

    out, seed, images, progress = task.options.out, task.options.seed, {}, Progress("step")

    def save(numbers: list[int], pictures: list) -> None:
        for i, image in zip(numbers, task.finish(pictures), strict=True):
            images[i] = image
            prompt = prompts[i // task.options.num_images]
            progress.say(save_next(image, out, seed + i, task.text(prompt, seed + i)))

    share = task.steps()
    task.draw(prompts, lambda done, total: progress(done * share, round(total * share)), finished=save)
    if len(images) > 1:
        text = task.text(prompts[0], seed, num_images=task.options.num_images)
        print(save_sheet(contact_sheet([images[i] for i in sorted(images)]), out, text))


def draw_grid(task: Task, prompt: str, axes: dict[str, list]) -> None:
    """Draws and saves one picture for each combination, and the labelled sheet."""
    from sdjax.commands.grid import cells, grid_sheet

    out, images, progress = task.options.out, [], Progress("picture")
    combinations = list(cells(axes))
    for changes in combinations:
        task.check([prompt], **changes)
    for i, changes in enumerate(combinations):
        part = lambda step, total, i=i: progress(i + step / total, len(combinations))
        images += task.draw([prompt], part, **changes)
        seed = changes.get("seed", task.options.seed)
        progress.say(save_next(images[i], out, seed, task.text(prompt, seed, changes)))
    text = task.text(prompt, task.options.seed, grid=task.options.grid)
    print(save_sheet(grid_sheet(axes, images), out, text))


def draw_batch(task: Task, prompts: list[str]) -> None:
    """Draws and saves --num-images pictures of each prompt of --prompts-file."""
    import jax
    import numpy as np

    from sdjax.commands.batch import run_batch
    from sdjax.devices.placement import chunk_size, copy_over
    from sdjax.devices.processes import agree, device_errors
    from sdjax.files import digest_of_file
    from sdjax.image.pixels import to_rgb
    from sdjax.model.value import digest
    from sdjax.tasks.options_image_prompt import IMAGE_PROMPT_OPTIONS
    from sdjax.tasks.options_lora import LORA_OPTIONS
    from sdjax.tasks.options_sdxl import SDXL_OPTIONS

    sd, options = task.sd, task.options
    prompts = [prompt for prompt in prompts for _ in range(options.num_images)]
    task.check(prompts, num_images=1)
    large = (options.hires or 1) ** 2  # the second walk's pictures
    size, devices = chunk_size(len(prompts), int(task.height * task.width * large) // sd.config.vae.factor**2)
    settings = {name: getattr(options, name) for name in (*NAMES, "strength", "feather", "dtype")}
    for option in (*SDXL_OPTIONS, *LORA_OPTIONS, *IMAGE_PROMPT_OPTIONS):  # left out, as by runs before there were any
        if option.name == "lora_folder" or settings.get(option.name, option.default) == option.default:
            settings.pop(option.name, None)
    settings |= {"height": task.height, "width": task.width, "model": sd.config.name, "weights": digest(sd.params)}
    files = {name: getattr(options, name) for name in FILES if getattr(options, name) is not None}
    settings |= {name: digest_of_file(path) for name, path in files.items()}
    if "refiner" in task.arguments:
        settings |= {"refiner": digest(task.arguments["refiner"].params)}
    settings |= settings_of_controls(task.arguments, options)
    settings |= settings_of_image_prompts(task.arguments, options)
    settings |= {} if options.noise_level is None else {"noise_level": options.noise_level}
    if "image" in task.arguments:
        settings |= {"image": digest(np.asarray(task.arguments["image"]))}
    if task.mask is not None:
        settings |= {"mask": digest(np.asarray(to_rgb(task.mask, "black")))}
    for name in ("mask_cells", "hires", "hires_strength", "hires_upscale", "hires_steps", "outpaint"):
        if getattr(options, name) != getattr(Options, name):  # else left out, as by runs before there were any
            settings |= {name: getattr(options, name)}
    settings |= settings_of_loras(options, [task.split(line)[0] for line in prompts])
    settings |= {"embeddings": digest(dict(sd.embeddings), repr([*sd.embeddings]))} if sd.embeddings else {}
    settings |= {"safety_checker": digest(task.checker.params)} if task.checker else {}
    settings |= {"watermark": True} if options.watermark else {}
    task.sd = replace(sd, params=copy_over(sd.params, devices))
    made = run_batch(
        lambda prompts, seed, progress: task.draw(prompts, progress, seed=seed, num_images=1),
        lambda i: task.text(prompts[i], options.seed + i),
        prompts,
        options.out,
        settings,
        options.seed,
        options.batch_size or size,
        jax.process_index(),
        jax.process_count(),
        Progress("picture"),
    )
    print(f"{options.out}: {made} pictures drawn")
    with device_errors():
        agree(made)  # waits for the other processes: at its end JAX would wait for only 100 s
