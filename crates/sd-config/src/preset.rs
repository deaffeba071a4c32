//! The published configurations, built in.

use crate::{
    Activation, AdditionEmbedType, BetaSchedule, ClipConfig, DecoderBlockType, DownBlockType,
    EncoderBlockType, ModelConfig, ModelIndex, PerBlock, PredictionType, RunDefaults,
    SchedulerFile, TextEncoderConfig, TimestepSpacing, UnetConfig, UpBlockType, VaeConfig, Version,
    detect,
};

/// The configuration that the published files of `version` parse to.
pub(crate) fn preset(version: Version) -> ModelConfig {
    let index = index(version);
    let (unet, vae, scheduler) = (unet(version), vae(version), scheduler(version));
    let defaults = detect::defaults(Some(version), &index, &unet, &vae);
    ModelConfig {
        version: Some(version),
        index,
        text_encoders: text_encoders(version),
        unet,
        vae,
        scheduler,
        defaults,
    }
}

fn index(version: Version) -> ModelIndex {
    use Version::*;
    let class_name = match version {
        V1_5 | V2_1 | V2_1Base | SdTurbo => "StableDiffusionPipeline",
        V1_5Inpaint | V2Inpaint => "StableDiffusionInpaintPipeline",
        Xl | XlTurbo => "StableDiffusionXLPipeline",
        XlRefiner => "StableDiffusionXLImg2ImgPipeline",
        XlInpaint => "StableDiffusionXLInpaintPipeline",
        Lcm => "LatentConsistencyModelPipeline",
    };
    let mut components = vec![
        ("scheduler", scheduler_class(version)),
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
    ];
    if version != XlRefiner {
        components.extend([
            ("text_encoder", "CLIPTextModel"),
            ("tokenizer", "CLIPTokenizer"),
        ]);
    }
    if matches!(version, Xl | XlRefiner | XlInpaint | XlTurbo) {
        components.extend([
            ("text_encoder_2", "CLIPTextModelWithProjection"),
            ("tokenizer_2", "CLIPTokenizer"),
        ]);
    }
    ModelIndex {
        class_name: class_name.to_owned(),
        components: components
            .into_iter()
            .map(|(folder, class)| (folder.to_owned(), class.to_owned()))
            .collect(),
        force_zeros_for_empty_prompt: version != XlRefiner,
        requires_aesthetics_score: version == XlRefiner,
        sd_defaults: RunDefaults::default(),
    }
}

fn text_encoders(version: Version) -> Vec<TextEncoderConfig> {
    use Version::*;
    let first = |clip| TextEncoderConfig {
        clip,
        folder: "text_encoder",
        tokenizer_folder: "tokenizer",
    };
    let second = || TextEncoderConfig {
        clip: open_clip_big_g(),
        folder: "text_encoder_2",
        tokenizer_folder: "tokenizer_2",
    };
    match version {
        V1_5 | V1_5Inpaint | Lcm => vec![first(clip_l())],
        V2_1 | V2_1Base | V2Inpaint | SdTurbo => vec![first(open_clip_h())],
        Xl | XlInpaint | XlTurbo => vec![first(clip_l()), second()],
        XlRefiner => vec![second()],
    }
}

/// OpenAI's CLIP ViT-L/14.
fn clip_l() -> ClipConfig {
    ClipConfig {
        architectures: vec!["CLIPTextModel".to_owned()],
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        projection_dim: 768,
        eos_token_id: 2,
        ..ClipConfig::default()
    }
}

/// OpenCLIP ViT-H/14 without its last layer.
fn open_clip_h() -> ClipConfig {
    ClipConfig {
        architectures: vec!["CLIPTextModel".to_owned()],
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 23,
        num_attention_heads: 16,
        hidden_act: Activation::Gelu,
        projection_dim: 512,
        eos_token_id: 2,
        ..ClipConfig::default()
    }
}

/// OpenCLIP ViT-bigG/14.
fn open_clip_big_g() -> ClipConfig {
    ClipConfig {
        architectures: vec!["CLIPTextModelWithProjection".to_owned()],
        hidden_size: 1280,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        hidden_act: Activation::Gelu,
        projection_dim: 1280,
        eos_token_id: 2,
        ..ClipConfig::default()
    }
}

fn unet(version: Version) -> UnetConfig {
    use Version::*;
    let base = match version {
        V1_5 | V1_5Inpaint | Lcm => UnetConfig {
            cross_attention_dim: PerBlock::Same(768),
            ..UnetConfig::default()
        },
        V2_1 | V2_1Base | V2Inpaint | SdTurbo => UnetConfig {
            cross_attention_dim: PerBlock::Same(1024),
            attention_head_dim: PerBlock::Each(vec![5, 10, 20, 20]),
            use_linear_projection: true,
            ..UnetConfig::default()
        },
        Xl | XlInpaint | XlTurbo => unet_xl(),
        XlRefiner => unet_xl_refiner(),
    };
    let size = match version {
        V1_5 | V1_5Inpaint | V2_1Base | V2Inpaint | XlTurbo | SdTurbo => 64,
        V2_1 | Lcm => 96,
        Xl | XlRefiner | XlInpaint => 128,
    };
    let inpaint = matches!(version, V1_5Inpaint | V2Inpaint | XlInpaint);
    UnetConfig {
        sample_size: Some(PerBlock::Same(size)),
        in_channels: if inpaint { 9 } else { 4 },
        upcast_attention: version == V2_1,
        time_cond_proj_dim: (version == Lcm).then_some(256),
        ..base
    }
}

fn unet_xl() -> UnetConfig {
    use {DownBlockType::*, UpBlockType::*};
    UnetConfig {
        down_block_types: vec![DownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D],
        up_block_types: vec![CrossAttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
        block_out_channels: vec![320, 640, 1280],
        cross_attention_dim: PerBlock::Same(2048),
        transformer_layers_per_block: PerBlock::Each(vec![1, 2, 10]),
        attention_head_dim: PerBlock::Each(vec![5, 10, 20]),
        use_linear_projection: true,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(256),
        projection_class_embeddings_input_dim: Some(2816),
        ..UnetConfig::default()
    }
}

fn unet_xl_refiner() -> UnetConfig {
    use {DownBlockType::*, UpBlockType::*};
    UnetConfig {
        down_block_types: vec![
            DownBlock2D,
            CrossAttnDownBlock2D,
            CrossAttnDownBlock2D,
            DownBlock2D,
        ],
        up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
        block_out_channels: vec![384, 768, 1536, 1536],
        cross_attention_dim: PerBlock::Same(1280),
        transformer_layers_per_block: PerBlock::Same(4),
        attention_head_dim: PerBlock::Each(vec![6, 12, 24, 24]),
        use_linear_projection: true,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(256),
        projection_class_embeddings_input_dim: Some(2560),
        ..UnetConfig::default()
    }
}

fn vae(version: Version) -> VaeConfig {
    use Version::*;
    let xl = matches!(version, Xl | XlRefiner | XlInpaint | XlTurbo);
    VaeConfig {
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        sample_size: match version {
            Xl | XlRefiner | XlInpaint | XlTurbo => 1024,
            V2_1 | V2_1Base | SdTurbo | Lcm => 768,
            V1_5 => 512,
            V1_5Inpaint | V2Inpaint => 256,
        },
        scaling_factor: if xl { 0.13025 } else { 0.18215 },
        down_block_types: vec![EncoderBlockType::DownEncoderBlock2D; 4],
        up_block_types: vec![DecoderBlockType::UpDecoderBlock2D; 4],
        ..VaeConfig::default()
    }
}

fn scheduler_class(version: Version) -> &'static str {
    use Version::*;
    match version {
        V1_5 | V2_1Base | V2Inpaint => "PNDMScheduler",
        V1_5Inpaint | V2_1 => "DDIMScheduler",
        Xl | XlRefiner | XlInpaint | SdTurbo => "EulerDiscreteScheduler",
        XlTurbo => "EulerAncestralDiscreteScheduler",
        Lcm => "LCMScheduler",
    }
}

fn scheduler(version: Version) -> SchedulerFile {
    use Version::*;
    // Every file has the keys of PNDM, whatever its class: they were once copied from one to the
    // next.
    let base = SchedulerFile {
        class_name: scheduler_class(version).to_owned(),
        num_train_timesteps: Some(1000),
        beta_start: Some(0.00085),
        beta_end: Some(0.012),
        beta_schedule: Some(BetaSchedule::ScaledLinear),
        prediction_type: Some(PredictionType::Epsilon),
        steps_offset: Some(1),
        clip_sample: Some(false),
        set_alpha_to_one: Some(false),
        skip_prk_steps: Some(true),
        ..SchedulerFile::default()
    };
    match version {
        V1_5 | V2Inpaint => SchedulerFile {
            prediction_type: None,
            ..base
        },
        V1_5Inpaint => SchedulerFile {
            prediction_type: None,
            skip_prk_steps: None,
            ..base
        },
        V2_1 => SchedulerFile {
            prediction_type: Some(PredictionType::VPrediction),
            ..base
        },
        V2_1Base => base,
        Xl | XlRefiner | XlInpaint => SchedulerFile {
            timestep_spacing: Some(TimestepSpacing::Leading),
            interpolation_type: Some("linear".to_owned()),
            sample_max_value: Some(1.0),
            use_karras_sigmas: Some(false),
            ..base
        },
        XlTurbo => SchedulerFile {
            timestep_spacing: Some(TimestepSpacing::Trailing),
            interpolation_type: Some("linear".to_owned()),
            sample_max_value: Some(1.0),
            ..base
        },
        SdTurbo => SchedulerFile {
            timestep_spacing: Some(TimestepSpacing::Trailing),
            interpolation_type: Some("linear".to_owned()),
            sample_max_value: Some(1.0),
            timestep_type: Some("discrete".to_owned()),
            use_karras_sigmas: Some(false),
            ..base
        },
        Lcm => SchedulerFile {
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: Some(0),
            set_alpha_to_one: Some(true),
            skip_prk_steps: None,
            clip_sample_range: Some(1.0),
            thresholding: Some(false),
            dynamic_thresholding_ratio: Some(0.995),
            sample_max_value: Some(1.0),
            rescale_betas_zero_snr: Some(false),
            original_inference_steps: Some(50),
            timestep_scaling: Some(10.0),
            ..base
        },
    }
}
