//! Every op on every device, against f64 references; and the order contract: the bits of a result depend on the layer,
//! the numerics class and the image alone.

mod conformance {
    pub mod cases;
    pub mod check;
    pub mod reference;
    pub mod seeded;
}

use std::num::NonZero;

use conformance::{
    cases::{BARE, Case, Op, around_a_tile, cases},
    check::{close, order, plain, same_bits, watched},
    reference::reference,
    seeded::{Fault, Seeded},
};
use sdshard::backend::{
    Device, DeviceId, DeviceKind,
    cpu::{Cpu, Path},
    open, visible,
};

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_here())
}

fn cpu(path: Path, threads: usize, fuse: bool) -> Cpu {
    Cpu::new(path, NonZero::new(threads).unwrap(), Vec::new(), fuse)
}

/// The CPU in every form: kernel path, threads, with and without fused epilogues.
fn cpus() -> Vec<(String, Device)> {
    let mut devices = Vec::new();
    for path in paths() {
        for threads in [1, 2, 3] {
            for fuse in [true, false] {
                let name = format!("cpu {path}, {threads} threads, {}", if fuse { "fused" } else { "plain ops" });
                devices.push((name, Device::new(DeviceId::CPU, cpu(path, threads, fuse))));
            }
        }
    }
    devices
}

/// The CPU in every form, and whatever else this machine has. `SDSHARD_EXPECT=cuda,wgpu` makes absence a failure.
fn devices() -> Vec<(String, Device)> {
    let found: Vec<DeviceId> = visible().iter().map(|device| device.id).collect();
    let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
    for kind in [DeviceKind::Cuda, DeviceKind::Wgpu] {
        if !found.iter().any(|id| id.kind == kind) {
            println!("{}: not here", kind.name());
            assert!(!expected.split(',').any(|name| name == kind.name()), "{}: expected, but not here", kind.name());
        }
    }
    let opened = open(&found).expect("visible devices open");
    cpus().into_iter().chain(found.iter().map(DeviceId::to_string).zip(opened)).collect()
}

/// Fails with all that `check` objects to, not just the first.
fn none<T>(items: &[T], check: impl Fn(&T) -> Vec<String>) {
    let objections: Vec<String> = items.iter().flat_map(check).collect();
    assert!(objections.is_empty(), "{} objections:\n{}", objections.len(), objections.join("\n"));
}

#[test]
fn every_op_gives_what_its_definition_says() {
    let devices = devices();
    none(&cases(), |case| {
        let data = case.data();
        let want = reference(&case.op, &data);
        let right = |device: &Device| {
            let got = watched(device, case, &data, want.len())?;
            close(&want, &got, case.tolerance)
        };
        let objection = |(name, device): &(String, Device)| {
            right(device).err().map(|e| format!("{name}: {:?} on {:e}: {e}", case.op, case.spread))
        };
        devices.iter().filter_map(objection).collect()
    });
}

#[test]
fn bits_do_not_depend_on_batch_threads_fusion_or_place() {
    let devices = devices();
    none(&cases(), |case| order(&devices, case).err().into_iter().collect());
}

#[test]
fn bits_do_not_depend_on_where_tiles_end() {
    for path in paths() {
        let devices: Vec<_> = cpus().into_iter().filter(|(_, device)| device.class().contains(path.name())).collect();
        none(&around_a_tile(path.rows()), |case| order(&devices, case).err().into_iter().collect());
    }
}

const ONE_ROW: Case =
    Case { op: Op::Linear { x: [3, 1, 70], out: 37, tail: BARE }, center: 0.0, spread: 1.0, tolerance: 2e-6 };

fn seeded(fault: Fault) -> Device {
    Device::new(DeviceId::CPU, Seeded::new(cpu(Path::Portable, 1, true), fault))
}

#[test]
fn another_order_of_summation_is_close_and_yet_found() {
    let (sound, device) = (seeded(Fault::Sound), seeded(Fault::OneRowInHalves));
    order(&[("sound".into(), sound)], &ONE_ROW).unwrap();
    let image = ONE_ROW.data().image(0);
    close(&reference(&ONE_ROW.op, &image), &plain(&device, &ONE_ROW, &image).unwrap(), ONE_ROW.tolerance).unwrap();
    let objection = order(&[("seeded".into(), device)], &ONE_ROW).unwrap_err();
    assert!(objection.contains("alone"), "{objection}");
}

#[test]
fn threads_that_disagree_are_found() {
    let one_row = Case { op: Op::Linear { x: [1, 1, 70], out: 37, tail: BARE }, ..ONE_ROW };
    let devices = [Fault::Sound, Fault::OneRowInHalves].map(|fault| (format!("{fault:?}"), seeded(fault)));
    let objection = order(&devices, &one_row).unwrap_err();
    assert!(objection.contains("OneRowInHalves and Sound"), "{objection}");
}

#[test]
fn a_missing_element_and_a_stray_one_are_found() {
    let data = ONE_ROW.data();
    let want = reference(&ONE_ROW.op, &data);
    let run = |fault| watched(&seeded(fault), &ONE_ROW, &data, want.len());
    close(&want, &run(Fault::Sound).unwrap(), ONE_ROW.tolerance).unwrap();
    let missing = run(Fault::MissingElement).unwrap();
    assert!(missing.last().unwrap().is_nan());
    close(&want, &missing, ONE_ROW.tolerance).unwrap_err();
    let stray = run(Fault::StrayElement).unwrap_err();
    assert!(stray.contains("a stray write: the output"), "{stray}");
}

#[test]
fn wrong_answers_are_objected_to() {
    let want = [0.5, -2.0, 1.0];
    let right = [0.5, -2.0, 1.0];
    close(&want, &right, 0.0).unwrap();
    close(&want, &[0.5, -2.0, 1.00001], 1e-5).unwrap();
    for (wrong, why) in [
        (&[0.5, -2.0, 1.00003][..], "element 2"),
        (&[0.5, 2.0, 1.0], "element 1"),
        (&[f32::NAN, -2.0, 1.0], "element 0 is NaN"),
        (&[0.5, f32::NEG_INFINITY, 1.0], "element 1 is -inf"),
        (&[0.5, -2.0], "2 elements in place of 3"),
        (&[0.5, -2.0, 1.0, 0.0], "4 elements in place of 3"),
        (&[], "0 elements"),
    ] {
        let objection = close(&want, wrong, 1e-5).unwrap_err();
        assert!(objection.contains(why), "{objection}");
    }
    close(&[f64::NAN], &[f32::NAN], 1.0).expect_err("NaN is never close");

    same_bits(&right, &right).unwrap();
    same_bits(&[f32::NAN], &[f32::NAN]).unwrap();
    for wrong in [&[0.5, -2.0, 1.0f32.next_up()][..], &[0.5, -2.0], &[0.5, -2.0, f32::NAN]] {
        same_bits(&right, wrong).unwrap_err();
    }
    same_bits(&[0.0], &[-0.0]).expect_err("zeros of either sign are different bits");
}
