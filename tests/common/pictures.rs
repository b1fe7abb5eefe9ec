//! Pictures and masks by a formula, and a model that takes masks: `tests/reference/img2img.py` has them too.

use std::{collections::BTreeMap, fs, path::Path};

use sdshard::pipeline::Image;
use tempfile::TempDir;

use super::formula;

/// A colourful picture without structure.
pub fn picture(width: usize, height: usize) -> Image {
    let value = |i: usize| {
        let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
        ((x * 5 + y * 3 + c * 80 + x * y / 7) % 256) as u8
    };
    Image { width, height, rgb: (0..width * height * 3).map(value).collect() }
}

/// White on the right, with an edge that is not one of the latents' cells, and grey values around the threshold.
pub fn mask(width: usize, height: usize) -> Image {
    let value = |i: usize| match (i / 3 % width, i / 3 / width) {
        (0..9, y) if y >= height / 2 => 127,
        (9..19, y) if y >= height / 2 => 128,
        (x, _) if x > width / 2 + 3 => 255,
        _ => 0,
    };
    Image { width, height, rgb: (0..width * height * 3).map(value).collect() }
}

/// The folder `tests/golden/tiny-sd1` with a UNet of nine input channels.
pub fn inpainting_folder() -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-sd1")), folder.path());
    let config = folder.path().join("unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"in_channels\": 4"));
    fs::write(&config, text.replace("\"in_channels\": 4", "\"in_channels\": 9")).unwrap();
    let file = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
    let mut all: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, tensor)| (name.to_owned(), (tensor.shape().to_vec(), values(tensor.data()))))
        .collect();
    let shape = vec![all["conv_in.weight"].0[0], 9, 3, 3];
    let first = formula::weight("unet", "conv_in.weight", &shape, 1.0);
    all.insert("conv_in.weight".into(), (shape, first));
    formula::write(&file, &all);
    folder
}
