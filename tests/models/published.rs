//! The names and shapes of the tensors of published models, in diffusers and as the original code numbers its blocks.

use std::collections::HashSet;

use sdshard::weights::UnetBlocks;

/// A tensor's name in diffusers and in LDM, and its shape.
pub(crate) type Named = (String, String, Vec<usize>);

/// A UNet's shape. Depths are those of the transformers behind each residual block, 0 without one.
pub(crate) struct Net {
    pub(crate) widths: &'static [usize],
    pub(crate) layers: usize,
    pub(crate) down: &'static [usize],
    /// `None` for a middle of one residual block alone.
    pub(crate) mid: Option<usize>,
    pub(crate) up: &'static [usize],
    pub(crate) context: usize,
    pub(crate) added: Option<usize>,
    pub(crate) inputs: usize,
    pub(crate) is_linear: bool,
}

pub(crate) const SD1: Net = Net {
    widths: &[320, 640, 1280, 1280],
    layers: 2,
    down: &[1, 1, 1, 1, 1, 1, 0, 0],
    mid: Some(1),
    up: &[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    context: 768,
    added: None,
    inputs: 4,
    is_linear: false,
};
pub(crate) const SD2: Net = Net { context: 1024, is_linear: true, ..SD1 };
pub(crate) const SDXL: Net = Net {
    widths: &[320, 640, 1280],
    layers: 2,
    down: &[0, 0, 2, 2, 10, 10],
    mid: Some(10),
    up: &[10, 10, 10, 2, 2, 2, 0, 0, 0],
    context: 2048,
    added: Some(2816),
    inputs: 4,
    is_linear: true,
};
pub(crate) const REFINER: Net = Net {
    widths: &[384, 768, 1536, 1536],
    layers: 2,
    down: &[0, 0, 4, 4, 4, 4, 0, 0],
    mid: Some(4),
    up: &[0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    context: 1280,
    added: Some(2560),
    inputs: 4,
    is_linear: true,
};
pub(crate) const SSD_1B: Net = Net { down: &[0, 0, 2, 2, 4, 4], mid: None, up: &[4, 4, 10, 2, 1, 1, 0, 0, 0], ..SDXL };
pub(crate) const VEGA: Net = Net { down: &[0, 0, 1, 1, 2, 2], mid: None, up: &[2, 2, 2, 1, 1, 1, 0, 0, 0], ..SDXL };

/// Collects tensors under both names.
#[derive(Default)]
struct Names(Vec<Named>);

impl Names {
    fn one(&mut self, name: &str, ldm: &str, shape: &[usize]) {
        self.0.push((name.to_owned(), ldm.to_owned(), shape.to_vec()));
    }

    /// A weight and a bias of its first size.
    fn both(&mut self, name: &str, ldm: &str, shape: &[usize]) {
        self.one(&format!("{name}.weight"), &format!("{ldm}.weight"), shape);
        self.one(&format!("{name}.bias"), &format!("{ldm}.bias"), &shape[..1]);
    }

    fn resnet(&mut self, name: &str, ldm: &str, [from, to]: [usize; 2], time: usize) {
        for (layer, of, shape) in [
            ("norm1", "in_layers.0", vec![from]),
            ("conv1", "in_layers.2", vec![to, from, 3, 3]),
            ("time_emb_proj", "emb_layers.1", vec![to, time]),
            ("norm2", "out_layers.0", vec![to]),
            ("conv2", "out_layers.3", vec![to, to, 3, 3]),
        ] {
            self.both(&format!("{name}.{layer}"), &format!("{ldm}.{of}"), &shape);
        }
        if from != to {
            self.both(&format!("{name}.conv_shortcut"), &format!("{ldm}.skip_connection"), &[to, from, 1, 1]);
        }
    }

    fn transformer(&mut self, name: &str, ldm: &str, width: usize, depth: usize, net: &Net) {
        let projection = if net.is_linear { vec![width, width] } else { vec![width, width, 1, 1] };
        self.both(&format!("{name}.norm"), &format!("{ldm}.norm"), &[width]);
        self.both(&format!("{name}.proj_in"), &format!("{ldm}.proj_in"), &projection);
        for i in 0..depth {
            let path = |path: &str, layer: &str| format!("{path}.transformer_blocks.{i}.{layer}");
            let mut both = |layer: &str, shape: &[usize]| self.both(&path(name, layer), &path(ldm, layer), shape);
            for layer in ["norm1", "norm2", "norm3"] {
                both(layer, &[width]);
            }
            both("attn1.to_out.0", &[width, width]);
            both("attn2.to_out.0", &[width, width]);
            both("ff.net.0.proj", &[8 * width, width]);
            both("ff.net.2", &[width, 4 * width]);
            for (layer, from) in [("attn1", width), ("attn2", net.context)] {
                for (part, from) in [("to_q", width), ("to_k", from), ("to_v", from)] {
                    let layer = format!("{layer}.{part}.weight");
                    self.one(&path(name, &layer), &path(ldm, &layer), &[width, from]);
                }
            }
        }
        self.both(&format!("{name}.proj_out"), &format!("{ldm}.proj_out"), &projection);
    }
}

/// All tensors of a UNet, in LDM's order: a number counts the blocks of each path.
pub(crate) fn unet(net: &Net) -> Vec<Named> {
    let mut all = Names::default();
    let (first, time) = (net.widths[0], 4 * net.widths[0]);
    all.both("time_embedding.linear_1", "time_embed.0", &[time, first]);
    all.both("time_embedding.linear_2", "time_embed.2", &[time, time]);
    if let Some(added) = net.added {
        all.both("add_embedding.linear_1", "label_emb.0.0", &[time, added]);
        all.both("add_embedding.linear_2", "label_emb.0.2", &[time, time]);
    }
    all.both("conv_in", "input_blocks.0.0", &[first, net.inputs, 3, 3]);
    let (mut block, mut width, mut skips) = (1, first, vec![first]);
    let mut depths = net.down.iter();
    for (level, &to) in net.widths.iter().enumerate() {
        for layer in 0..net.layers {
            let name = |kind: &str| format!("down_blocks.{level}.{kind}.{layer}");
            all.resnet(&name("resnets"), &format!("input_blocks.{block}.0"), [width, to], time);
            match depths.next().unwrap() {
                0 => {}
                depth => all.transformer(&name("attentions"), &format!("input_blocks.{block}.1"), to, *depth, net),
            }
            width = to;
            skips.push(width);
            block += 1;
        }
        if level + 1 < net.widths.len() {
            let name = format!("down_blocks.{level}.downsamplers.0.conv");
            all.both(&name, &format!("input_blocks.{block}.0.op"), &[width, width, 3, 3]);
            skips.push(width);
            block += 1;
        }
    }
    all.resnet("mid_block.resnets.0", "middle_block.0", [width, width], time);
    if let Some(depth) = net.mid {
        all.transformer("mid_block.attentions.0", "middle_block.1", width, depth, net);
        all.resnet("mid_block.resnets.1", "middle_block.2", [width, width], time);
    }
    let (mut block, mut depths) = (0, net.up.iter());
    for (level, &to) in net.widths.iter().rev().enumerate() {
        for layer in 0..=net.layers {
            let name = |kind: &str| format!("up_blocks.{level}.{kind}.{layer}");
            let from = width + skips.pop().unwrap();
            all.resnet(&name("resnets"), &format!("output_blocks.{block}.0"), [from, to], time);
            let mut next = 1;
            match depths.next().unwrap() {
                0 => {}
                depth => {
                    all.transformer(&name("attentions"), &format!("output_blocks.{block}.1"), to, *depth, net);
                    next = 2;
                }
            }
            width = to;
            if layer == net.layers && level + 1 < net.widths.len() {
                let name = format!("up_blocks.{level}.upsamplers.0.conv");
                all.both(&name, &format!("output_blocks.{block}.{next}.conv"), &[width, width, 3, 3]);
            }
            block += 1;
        }
    }
    all.both("conv_norm_out", "out.0", &[first]);
    all.both("conv_out", "out.2", &[4, first, 3, 3]);
    all.0
}

/// All tensors of a VAE, in LDM's order: the decoder's levels are made from the last one up.
pub(crate) fn vae(widths: &[usize], layers: usize) -> Vec<Named> {
    let mut all = Names::default();
    let last = widths.len() - 1;
    let resnet = |all: &mut Names, name: &str, ldm: &str, from: usize, to: usize| {
        for (layer, shape) in
            [("norm1", vec![from]), ("conv1", vec![to, from, 3, 3]), ("norm2", vec![to]), ("conv2", vec![to, to, 3, 3])]
        {
            all.both(&format!("{name}.{layer}"), &format!("{ldm}.{layer}"), &shape);
        }
        if from != to {
            all.both(&format!("{name}.conv_shortcut"), &format!("{ldm}.nin_shortcut"), &[to, from, 1, 1]);
        }
    };
    for half in ["encoder", "decoder"] {
        let wide = widths[last];
        let (inputs, outputs) = if half == "encoder" { (3, 8) } else { (4, 3) };
        let first = if half == "encoder" { widths[0] } else { wide };
        all.both(&format!("{half}.conv_in"), &format!("{half}.conv_in"), &[first, inputs, 3, 3]);
        for (i, name) in [(0, "block_1"), (1, "block_2")] {
            resnet(&mut all, &format!("{half}.mid_block.resnets.{i}"), &format!("{half}.mid.{name}"), wide, wide);
        }
        let attention = format!("{half}.mid_block.attentions.0");
        all.both(&format!("{attention}.group_norm"), &format!("{half}.mid.attn_1.norm"), &[wide]);
        for (name, ldm) in [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")] {
            all.both(&format!("{attention}.{name}"), &format!("{half}.mid.attn_1.{ldm}"), &[wide, wide, 1, 1]);
        }
        let mut width = first;
        for level in 0..=last {
            // LDM's number of the level, and diffusers'.
            let (at, name) = if half == "encoder" { (level, "down") } else { (last - level, "up") };
            for layer in 0..layers + usize::from(half == "decoder") {
                let path = format!("{half}.{name}_blocks.{level}.resnets.{layer}");
                resnet(&mut all, &path, &format!("{half}.{name}.{at}.block.{layer}"), width, widths[at]);
                width = widths[at];
            }
            if level < last {
                let sample = format!("{name}sample");
                let path = format!("{half}.{name}_blocks.{level}.{sample}rs.0.conv");
                all.both(&path, &format!("{half}.{name}.{at}.{sample}.conv"), &[width, width, 3, 3]);
            }
        }
        let out = if half == "encoder" { wide } else { widths[0] };
        all.both(&format!("{half}.conv_norm_out"), &format!("{half}.norm_out"), &[out]);
        all.both(&format!("{half}.conv_out"), &format!("{half}.conv_out"), &[outputs, out, 3, 3]);
    }
    all.both("quant_conv", "quant_conv", &[8, 8, 1, 1]);
    all.both("post_quant_conv", "post_quant_conv", &[4, 4, 1, 1]);
    all.0
}

/// All tensors of a text encoder with transformers' names.
pub(crate) fn clip(width: usize, layers: usize, vocabulary: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("embeddings.token_embedding.weight".to_owned(), vec![vocabulary, width]),
        ("embeddings.position_embedding.weight".to_owned(), vec![77, width]),
    ];
    let mut both = |name: String, shape: &[usize]| {
        all.push((format!("{name}.weight"), shape.to_vec()));
        all.push((format!("{name}.bias"), shape[..1].to_vec()));
    };
    for i in 0..layers {
        let layer = |name: &str| format!("encoder.layers.{i}.{name}");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            both(layer(&format!("self_attn.{name}")), &[width, width]);
        }
        both(layer("layer_norm1"), &[width]);
        both(layer("layer_norm2"), &[width]);
        both(layer("mlp.fc1"), &[4 * width, width]);
        both(layer("mlp.fc2"), &[width, 4 * width]);
    }
    both("final_layer_norm".to_owned(), &[width]);
    all
}

/// All tensors of a text encoder of OpenCLIP.
pub(crate) fn open_clip(width: usize, layers: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("token_embedding.weight".to_owned(), vec![49_408, width]),
        ("positional_embedding".to_owned(), vec![77, width]),
        ("text_projection".to_owned(), vec![width, width]),
        ("logit_scale".to_owned(), vec![]),
        ("ln_final.weight".to_owned(), vec![width]),
        ("ln_final.bias".to_owned(), vec![width]),
    ];
    for i in 0..layers {
        let layer = |name: &str| format!("transformer.resblocks.{i}.{name}");
        for (name, shape) in [
            ("attn.in_proj_weight", vec![3 * width, width]),
            ("attn.in_proj_bias", vec![3 * width]),
            ("attn.out_proj.weight", vec![width, width]),
            ("attn.out_proj.bias", vec![width]),
            ("ln_1.weight", vec![width]),
            ("ln_1.bias", vec![width]),
            ("ln_2.weight", vec![width]),
            ("ln_2.bias", vec![width]),
            ("mlp.c_fc.weight", vec![4 * width, width]),
            ("mlp.c_fc.bias", vec![4 * width]),
            ("mlp.c_proj.weight", vec![width, 4 * width]),
            ("mlp.c_proj.bias", vec![width]),
        ] {
            all.push((layer(name), shape));
        }
    }
    all
}

/// The number of tensors and of parameters.
fn counts<'a>(shapes: impl Iterator<Item = &'a Vec<usize>>) -> (usize, usize) {
    shapes.fold((0, 0), |(tensors, sum), shape| (tensors + 1, sum + shape.iter().product::<usize>()))
}

#[test]
fn every_tensor_of_the_published_models_has_one_name_on_either_side() {
    for (what, net, tensors, parameters) in [
        ("SD 1", SD1, 686, 859_520_964),
        ("SD 1 inpainting", Net { inputs: 9, ..SD1 }, 686, 859_535_364),
        ("SD 2", SD2, 686, 865_910_724),
        ("SDXL", SDXL, 1680, 2_567_463_684),
        ("SDXL inpainting", Net { inputs: 9, ..SDXL }, 1680, 2_567_478_084),
        ("the refiner", REFINER, 1220, 2_259_526_660),
        ("SSD-1B", SSD_1B, 944, 1_331_334_404),
        ("Segmind Vega", VEGA, 564, 745_225_604),
    ] {
        let all = unet(&net);
        assert_eq!(counts(all.iter().map(|(.., shape)| shape)), (tensors, parameters), "{what}");
        let up_attention = net.up.chunks(net.layers + 1).map(|depths| depths[0] > 0).collect();
        let blocks = UnetBlocks { layers_per_block: net.layers, up_attention };
        for (name, ldm, _) in &all {
            assert_eq!(blocks.ldm_name(name).as_ref(), Some(ldm), "{what}: {name}");
        }
        let distinct: HashSet<&String> = all.iter().map(|(_, ldm, _)| ldm).collect();
        assert_eq!(distinct.len(), tensors, "{what}");
    }
    let all = vae(&[128, 256, 512, 512], 2);
    assert_eq!(counts(all.iter().map(|(.., shape)| shape)), (248, 83_653_863));
    let shortcuts = all.iter().filter_map(|(_, ldm, _)| ldm.strip_suffix(".nin_shortcut.weight"));
    let places = ["encoder.down.1.block.0", "encoder.down.2.block.0", "decoder.up.1.block.0", "decoder.up.0.block.0"];
    assert_eq!(shortcuts.collect::<Vec<_>>(), places);
    assert_eq!(counts(clip(768, 12, 49_408).iter().map(|(_, shape)| shape)), (196, 123_060_480));
    assert_eq!(counts(clip(1024, 23, 49_408).iter().map(|(_, shape)| shape)), (372, 340_387_840));
    let big = clip(1280, 32, 49_408);
    let projection = ("text_projection.weight".to_owned(), vec![1280, 1280]);
    assert_eq!(counts(big.iter().chain([&projection]).map(|(_, shape)| shape)), (517, 694_659_840));
    // A scalar is no parameter of transformers' model.
    assert_eq!(counts(open_clip(1280, 32).iter().map(|(_, shape)| shape)), (390, 694_659_840 + 1));
}
