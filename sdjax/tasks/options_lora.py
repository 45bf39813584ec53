"""The rows of OPTIONS for LoRAs that prompts name."""

from pathlib import Path

from sdjax.checks import is_number
from sdjax.tasks.option import Option

LORA_OPTIONS: tuple[Option, ...] = (
    Option(
        "lora_folder",
        None,
        str | Path | None,
        "Where prompts find their LoRAs: <lora:name:te:unet> or <lora:name:te=0.5:unet=0.8>.",
        "A name is that of a file without its ending, of a folder, or what the file says itself (ss_output_name). "
        "te is the text towers' weight, 1 if left out, unet the UNet's, te if left out. Tags are cut out of a prompt; "
        "several add up, also to those of `sdjax.add_lora`. In negative_prompt, in prompt_2 and with syntax plain they "
        "are text.",
        check=lambda value: value is None or (isinstance(value, (str, Path)) and Path(value).is_dir()),
        right="a folder that is there",
        flag=str | None,
        text="Lora folder",
        read=str,
        place=54,
        program=False,
    ),
    Option(
        "lora_scale",
        1.0,
        float,
        "Multiplies the weights of all LoRAs, those of prompts and the model's own.",
        check=is_number,
        right="a finite number",
        flag=float,
        text="Lora scale",
        read=float,
        place=55,
        axis=float,
        program=False,
    ),
)
