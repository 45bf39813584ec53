"""The JSON files of models as their owners published them, every field: 1.4 and 1.5, inpainting, 2.1, 2.1 base.

The first is written out, the others are what differs from it. Also two models of later diffusers versions.
"""

# ruff: noqa: C408 (field names read best as keywords)

from typing import Any

BOS, EOS = (
    {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    for token in ("<|startoftext|>", "<|endoftext|>")
)
ADDED = {"__type": "AddedToken"}

SD15: dict[str, dict[str, Any]] = {
    "model_index.json": dict(
        _class_name="StableDiffusionPipeline",
        _diffusers_version="0.6.0",
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        scheduler=["diffusers", "PNDMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    ),
    "unet/config.json": dict(
        _class_name="UNet2DConditionModel",
        _diffusers_version="0.6.0",
        act_fn="silu",
        attention_head_dim=8,
        block_out_channels=[320, 640, 1280, 1280],
        center_input_sample=False,
        cross_attention_dim=768,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        in_channels=4,
        layers_per_block=2,
        mid_block_scale_factor=1,
        norm_eps=1e-05,
        norm_num_groups=32,
        out_channels=4,
        sample_size=64,
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    ),
    "vae/config.json": dict(
        _class_name="AutoencoderKL",
        _diffusers_version="0.6.0",
        act_fn="silu",
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        in_channels=3,
        latent_channels=4,
        layers_per_block=2,
        norm_num_groups=32,
        out_channels=3,
        sample_size=512,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ),
    "text_encoder/config.json": dict(
        _name_or_path="openai/clip-vit-large-patch14",
        architectures=["CLIPTextModel"],
        attention_dropout=0.0,
        bos_token_id=0,
        dropout=0.0,
        eos_token_id=2,
        hidden_act="quick_gelu",
        hidden_size=768,
        initializer_factor=1.0,
        initializer_range=0.02,
        intermediate_size=3072,
        layer_norm_eps=1e-05,
        max_position_embeddings=77,
        model_type="clip_text_model",
        num_attention_heads=12,
        num_hidden_layers=12,
        pad_token_id=1,
        projection_dim=768,
        torch_dtype="float32",
        transformers_version="4.22.0.dev0",
        vocab_size=49408,
    ),
    "scheduler/scheduler_config.json": dict(
        _class_name="PNDMScheduler",
        _diffusers_version="0.6.0",
        beta_end=0.012,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        trained_betas=None,
        clip_sample=False,
    ),
    "tokenizer/special_tokens_map.json": dict(bos_token=BOS, eos_token=EOS, pad_token="<|endoftext|>", unk_token=EOS),
    "tokenizer/tokenizer_config.json": dict(
        add_prefix_space=False,
        bos_token=ADDED | BOS,
        do_lower_case=True,
        eos_token=ADDED | EOS,
        errors="replace",
        model_max_length=77,
        name_or_path="openai/clip-vit-large-patch14",
        pad_token="<|endoftext|>",
        special_tokens_map_file="./special_tokens_map.json",
        tokenizer_class="CLIPTokenizer",
        unk_token=ADDED | EOS,
    ),
}


def changed(base: dict, drop: dict[str, tuple[str, ...]] | None = None, **parts: dict) -> dict:
    """`base` with fields of the files that begin with a keyword replaced, those of `drop` left out."""
    found = {}
    for name, content in base.items():
        part = name.split("/")[0].removesuffix(".json")
        kept = {key: value for key, value in content.items() if key not in (drop or {}).get(part, ())}
        new = parts.get(part, {}) if name != "tokenizer/tokenizer_config.json" else parts.get("tokenizer_config", {})
        found[name] = kept | new
    return found


NO_CHECKER = dict(requires_safety_checker=False, safety_checker=[None, None])
INPAINT = dict(_class_name="StableDiffusionInpaintPipeline")
LATER = dict(
    class_embed_type=None,
    dual_cross_attention=False,
    mid_block_type="UNetMidBlock2DCrossAttn",
    num_class_embeds=None,
    only_cross_attention=False,
    resnet_time_scale_shift="default",
    upcast_attention=False,
    use_linear_projection=False,
)
LATEST = LATER | dict(
    addition_embed_type=None,
    addition_embed_type_num_heads=64,
    addition_time_embed_dim=None,
    attention_type="default",
    class_embeddings_concat=False,
    conv_in_kernel=3,
    conv_out_kernel=3,
    cross_attention_norm=None,
    dropout=0.0,
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    mid_block_only_cross_attention=None,
    num_attention_heads=None,
    projection_class_embeddings_input_dim=None,
    resnet_out_scale_factor=1.0,
    resnet_skip_time_act=False,
    reverse_transformer_layers_per_block=None,
    time_cond_proj_dim=None,
    time_embedding_act_fn=None,
    time_embedding_dim=None,
    time_embedding_type="positional",
    timestep_post_act=None,
    transformer_layers_per_block=1,
)

SD14 = changed(
    SD15,
    {"vae": ("norm_num_groups",), "text_encoder": ("projection_dim",)},
    model_index=dict(_diffusers_version="0.2.2", feature_extractor=["transformers", "CLIPImageProcessor"]),
    unet=LATER | dict(_diffusers_version="0.12.0.dev0"),
    vae=dict(_diffusers_version="0.2.2", scaling_factor=0.18215),
    text_encoder=dict(transformers_version="4.21.0.dev0"),
    scheduler=dict(_diffusers_version="0.7.0.dev0"),
)
SD15_INPAINT = changed(
    SD15,
    model_index=INPAINT | dict(scheduler=["diffusers", "DDIMScheduler"]),
    unet=dict(_diffusers_version="0.6.0.dev0", in_channels=9),
    vae=dict(sample_size=256),
    scheduler=dict(_class_name="DDIMScheduler", _diffusers_version="0.6.0.dev0"),
)
SD21_BASE = changed(
    SD15,
    model_index=NO_CHECKER,
    unet=dict(
        _diffusers_version="0.10.0.dev0",
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        dual_cross_attention=False,
        num_class_embeds=None,
        only_cross_attention=False,
        use_linear_projection=True,
    ),
    vae=dict(_diffusers_version="0.10.0.dev0", sample_size=768),
    text_encoder=dict(
        _name_or_path="stabilityai/stable-diffusion-2",
        hidden_act="gelu",
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=23,
        projection_dim=512,
        transformers_version="4.25.0.dev0",
    ),
    scheduler=dict(_diffusers_version="0.10.0.dev0", prediction_type="epsilon"),
    tokenizer=dict(pad_token="!"),
    tokenizer_config=dict(name_or_path="stabilityai/stable-diffusion-2"),
)
SD21 = changed(
    SD21_BASE,
    model_index=dict(scheduler=["diffusers", "DDIMScheduler"]),
    unet=dict(_name_or_path="./stability/stable-diffusion-2-1/unet", sample_size=96, upcast_attention=True),
    vae=dict(_name_or_path="./stability/stable-diffusion-2-1/vae"),
    text_encoder=dict(torch_dtype="float16", transformers_version="4.26.0.dev0"),
    scheduler=dict(_class_name="DDIMScheduler", prediction_type="v_prediction"),
)
SD2_INPAINT = changed(
    SD21_BASE,
    {"unet": ("num_class_embeds", "only_cross_attention"), "scheduler": ("prediction_type",)},
    model_index=INPAINT,
    vae=dict(sample_size=512),
    unet=dict(_name_or_path="./hf-models/stable-diffusion-v2-inpainting/unet", in_channels=9),
)

#: a finetune of 2023, its tokenizer as transformers 4.35 wrote it
REALISTIC = changed(
    SD15,
    {"text_encoder": ("_name_or_path",), "tokenizer": ()},
    model_index=dict(_diffusers_version="0.25.0.dev0", image_encoder=[None, None], requires_safety_checker=True),
    unet=LATEST,
    vae=dict(force_upcast=True, scaling_factor=0.18215),
    text_encoder=dict(torch_dtype="float16"),
    scheduler=dict(prediction_type="epsilon", timestep_spacing="leading"),
    tokenizer=dict(pad_token=EOS | dict(normalized=False)),
    tokenizer_config=dict(
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=True,
        added_tokens_decoder={"49406": BOS | dict(special=True), "49407": EOS | dict(special=True)},
    ),
)

#: a finetune of 2024 at 640 px: a DDIM scheduler with every field, and what transformers 5 writes for torch_dtype
DREAMLIKE = changed(
    REALISTIC,
    {"text_encoder": ("torch_dtype",)},
    model_index=dict(
        _name_or_path="dreamlike-art/dreamlike-diffusion-1.0",
        feature_extractor=[None, None],
        requires_safety_checker=None,
        safety_checker=[None, None],
    ),
    unet=dict(sample_size=80),
    vae=dict(latents_mean=None, latents_std=None, sample_size=256),
    text_encoder=dict(dtype="float16", transformers_version="5.0.0", use_cache=True, return_dict=True),
    scheduler=dict(
        _class_name="DDIMScheduler",
        clip_sample_range=1.0,
        dynamic_thresholding_ratio=0.995,
        rescale_betas_zero_snr=False,
        sample_max_value=1.0,
        thresholding=False,
    ),
)

#: what other schedulers write into their files, over the fields above
SCHEDULERS = {
    "EulerDiscreteScheduler": dict(
        interpolation_type="linear",
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        timestep_type="discrete",
        sigma_min=None,
        sigma_max=None,
        final_sigmas_type="zero",
        skip_prk_steps=True,
        timestep_spacing="trailing",
        sample_max_value=1.0,
        rescale_betas_zero_snr=False,
    ),
    "DPMSolverMultistepScheduler": dict(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        dynamic_thresholding_ratio=0.995,
        sample_max_value=1.0,
        thresholding=False,
        lambda_min_clipped="-Infinity",
        variance_type=None,
        use_karras_sigmas=False,
    ),
    "DDPMScheduler": dict(variance_type="fixed_small", clip_sample_range=1.0),
    "LMSDiscreteScheduler": dict(use_karras_sigmas=False),
}
