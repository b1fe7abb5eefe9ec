//! What the planner counts for Stable Diffusion 1.5, beside figures from elsewhere: floating-point operations as torch
//! counts them and parameters as the published checkpoints have them. The real model code runs, without data.

use std::sync::Arc;

use sdshard::{
    backend::{
        Device, DeviceId, Precision,
        cpu::{Convolution, Kernels, Path},
        dry::CostCounter,
        rules::Rules,
    },
    models::{
        clip::{ClipSpec, ClipTextEncoder, EncodedText},
        route::{PersistentArenas, Route},
        unet::{Condition, Unet, UnetSpec},
        vae::{VaeDecoder, VaeEncoder, VaeSpec},
    },
    tensor::Tensor,
    weights::{Scope, Weights},
};

const TEXT_ENCODER: &str = r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}"#;
const UNET: &str = r#"{"sample_size": 64, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;
const VAE: &str = r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

/// Everything on one device.
fn whole(device: &Device) -> Route {
    Route::whole(device, Precision::F32, 100) // more than any of the networks has sections
}

/// A device on which a convolution's packed weights have as many elements as in the file.
fn dry() -> (Device, Arc<CostCounter>) {
    let kernels = Kernels { path: Path::Portable, convolution: Convolution::Direct };
    Device::dry(DeviceId::CPU, Rules::Cpu(kernels, Precision::F32), sdshard::backend::cpu::info().rates)
}

fn unet(device: &Device) -> Unet {
    let spec = UnetSpec::from_json(UNET, "unet/config.json").unwrap();
    Unet::load(&Scope::new(&Weights::shapes_only("unet"), device, Precision::F32), &spec, &whole(device)).unwrap()
}

fn text_encoder(device: &Device) -> ClipTextEncoder {
    let spec = ClipSpec::from_json(TEXT_ENCODER, "text_encoder/config.json").unwrap();
    ClipTextEncoder::load(
        &Scope::new(&Weights::shapes_only("text_encoder"), device, Precision::F32),
        &spec,
        &whole(device),
    )
    .unwrap()
}

fn vae(device: &Device) -> (VaeEncoder, VaeDecoder) {
    let spec = VaeSpec::from_json(VAE, "vae/config.json").unwrap();
    let weights = Weights::shapes_only("vae");
    let scope = Scope::new(&weights, device, Precision::F32);
    (VaeEncoder::load(&scope, &spec, &whole(device)).unwrap(), VaeDecoder::load(&scope, &spec, &whole(device)).unwrap())
}

/// Floating-point operations of `work`, in 10^9.
fn gflop(counter: &CostCounter, work: impl FnOnce() -> Tensor) -> f64 {
    counter.take();
    work();
    counter.take().flops / 1e9
}

/// `[batch, side, side, channels]` of nothing in particular.
fn latents(device: &Device, batch: usize, side: usize) -> Tensor {
    Tensor::new(device, [batch, side, side, 4], &vec![0.0; batch * side * side * 4]).unwrap()
}

#[test]
fn stable_diffusion_1_5_does_as_much_work_as_torch_counts() {
    let mut rows = Vec::new();
    {
        let (device, counter) = dry();
        let encoder = text_encoder(&device);
        let ids = vec![vec![0; 77]; 2];
        rows.push((
            "text encoder, two texts",
            gflop(&counter, || encoder.forward(&ids, 0, &whole(&device).pass()).unwrap().features),
            26.6,
        ));
    }
    for (what, side, want) in [("unet, two of 32x32", 32, 360.0), ("unet, two of 64x64", 64, 1607.0)] {
        let (device, counter) = dry();
        let unet = unet(&device);
        let got = gflop(&counter, || {
            let (route, keeps) =
                (whole(&device), PersistentArenas::new(vec![device.persistent_arena(usize::MAX).unwrap()]));
            let text = [EncodedText { features: vec![0.0; 77 * 768], pooled: Vec::new() }].into();
            let row = Condition { text, numbers: Vec::new(), guidance_scale: 1.0, beside: Vec::new() };
            // Torch makes the text's keys and values anew in every call.
            let texts = unet.condition(&[row.clone(), row], &route.pass(), &keeps).unwrap();
            let time = unet.time_features(500.0, &device).unwrap();
            unet.forward(&latents(&device, 2, side), &time, &texts, &[], &route.pass()).unwrap()
        });
        rows.push((what, got, want));
    }
    for (what, side, want) in [("vae, 32x32", 32, 622.0), ("vae, 64x64", 64, 2515.0)] {
        let (device, counter) = dry();
        let (_, decoder) = vae(&device);
        rows.push((
            what,
            gflop(&counter, || decoder.forward(latents(&device, 1, side), &whole(&device).pass()).unwrap()),
            want,
        ));
    }
    for (what, got, want) in rows {
        println!("{what}: {got:.1} of {want} GFLOP");
        assert!((got / want - 1.0).abs() < 0.01, "{what}: {got:.1} GFLOP, {want} are wanted");
    }
}

#[test]
fn stable_diffusion_1_5_has_as_many_parameters_as_its_checkpoint() {
    for (component, want) in [("text_encoder", 123_060_480.0), ("unet", 859_520_964.0), ("vae", 83_653_863.0)] {
        let (device, counter) = dry();
        match component {
            "text_encoder" => drop(text_encoder(&device)),
            "unet" => drop(unet(&device)),
            _ => drop(vae(&device)),
        }
        // Packed as f32, rows filled up to whole panels: a little more than the parameters.
        let got = counter.take().weight_bytes as f64 / 4.0;
        println!("{component}: room for {got} parameters of {want}");
        assert!((1.0..1.002).contains(&(got / want)), "{component}: room for {got} parameters, {want} are wanted");
    }
}

/// The keys that all UNets of SDXL have.
const SDXL: &str = r#""in_channels": 4, "out_channels": 4, "layers_per_block": 2, "sample_size": 128,
    "use_linear_projection": true, "addition_embed_type": "text_time", "addition_time_embed_dim": 256"#;
const BASE: &str = r#""block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]"#;
const REFINER: &str = r#""block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560, "transformer_layers_per_block": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]"#;
const BIG_G: &str = r#"{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "vocab_size": 49408, "projection_dim": 1280, "hidden_act": "gelu"}"#;

#[test]
fn the_networks_of_sdxl_have_as_many_parameters_as_their_checkpoints() {
    // A GPU holds exactly four bytes for each parameter.
    let rates = sdshard::backend::cpu::info().rates;
    let gpu = || Device::dry("cuda:0".parse().unwrap(), Rules::Gpu(Precision::F32), rates);
    let pruned = |down: &str, up: &str| {
        format!(
            r#"{BASE}, "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": {down},
                "reverse_transformer_layers_per_block": {up}"#
        )
    };
    for (what, keys, want) in [
        ("base", format!(r#"{BASE}, "transformer_layers_per_block": [1, 2, 10]"#), 2_567_463_684),
        (
            "base, LCM",
            format!(r#"{BASE}, "transformer_layers_per_block": [1, 2, 10], "time_cond_proj_dim": 256"#),
            2_567_545_604,
        ),
        ("refiner", REFINER.to_owned(), 2_259_526_660),
        ("SSD-1B", pruned("[1, [2, 2], [4, 4]]", "[[4, 4, 10], [2, 1, 1], 1]"), 1_331_334_404),
        ("Segmind Vega", pruned("[1, [1, 1], [2, 2]]", "[[2, 2, 2], [1, 1, 1], 1]"), 745_225_604),
    ] {
        let spec = UnetSpec::from_json(&format!("{{{SDXL}, {keys}}}"), what).unwrap();
        let (device, counter) = gpu();
        Unet::load(&Scope::new(&Weights::shapes_only("unet"), &device, Precision::F32), &spec, &whole(&device))
            .unwrap();
        assert_eq!(counter.take().weight_bytes / 4, want, "{what}");
    }
    let spec = ClipSpec::for_sdxl(BIG_G, "text_encoder_2", true).unwrap();
    let (device, counter) = gpu();
    let weights = Weights::shapes_only("text_encoder_2");
    let scope = Scope::new(&weights, &device, Precision::F32);
    ClipTextEncoder::load(&scope, &spec, &whole(&device)).unwrap();
    assert_eq!(counter.take().weight_bytes / 4, 694_659_840);
}
