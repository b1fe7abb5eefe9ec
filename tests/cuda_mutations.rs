//! Whether the conformance suite on the rig would notice a mistake in a kernel: each of these is made on purpose, in a
//! copy of the sources, and has to be objected to. Without the rig there is nothing to test, which is printed; with
//! `SDSHARD_EXPECT=rig` it is a failure.
#![cfg(feature = "cuda")]

#[allow(dead_code)] // conformance.rs uses all of it
mod conformance {
    pub mod cases;
    pub mod check;
    pub mod reference;
    pub mod seeded;
}
mod common;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::rig::Rig;
use conformance::{
    cases::{Case, Op, cases},
    check::{Subject, close, watched},
    reference::reference,
};
use sdshard::backend::{DeviceId, DeviceKind, Precision, open};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::BF16];

/// Elements of the inputs of a case.
const LARGEST: usize = 1 << 16;

/// A mistake: in `file`, the one place that says `right` says `wrong` instead. `sources` are to be compiled anew, and
/// the cases of `op` have to notice.
struct Mutation {
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    sources: &'static [&'static str],
    op: fn(&Op) -> bool,
}

fn linear(op: &Op) -> bool {
    matches!(op, Op::Linear { .. })
}

fn conv2d(op: &Op) -> bool {
    matches!(op, Op::Conv2d { .. })
}

fn attention(op: &Op) -> bool {
    matches!(op, Op::Attention { .. })
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "an index that is off by one",
        file: "group_norm.cu",
        right: "affine += (image * p.channels + channel) * 2;",
        wrong: "affine += (image * p.channels + channel) * 2 + 2;",
        sources: &["group_norm"],
        op: |op| matches!(op, Op::GroupNorm { .. }),
    },
    Mutation {
        name: "a missing barrier between writing a tile and reading it",
        file: "product.cuh",
        right: "        __syncthreads();\n        if (block + 1 < blocks) {\n            loader.next();",
        wrong: "        if (block + 1 < blocks) {\n            loader.next();",
        sources: &["linear"],
        op: linear,
    },
    Mutation {
        name: "a missing barrier before a tile is written anew",
        file: "attention.cu",
        right: "        __syncthreads();\n        if (block + 1 < place.blocks)",
        wrong: "        if (block + 1 < place.blocks)",
        sources: &["attention"],
        op: attention,
    },
    Mutation {
        name: "a missing wait for cp.async",
        file: "product.cuh",
        right: "cp_async_wait<STAGES - 2>();",
        wrong: "",
        sources: &["linear"],
        op: linear,
    },
    Mutation {
        name: "a wait for one stage too few",
        file: "product.cuh",
        right: "cp_async_wait<STAGES - 2>();",
        wrong: "cp_async_wait<STAGES - 1>();",
        sources: &["conv2d"],
        op: conv2d,
    },
    Mutation {
        name: "a wrong predicate at the tail",
        file: "product.cuh",
        right: "if (row >= tail.first + tail.count || n >= tail.width)",
        wrong: "if (row > tail.first + tail.count || n >= tail.width)",
        sources: &["linear"],
        op: linear,
    },
    Mutation {
        name: "maxima of other warps that are read before they are there",
        file: "attention.cu",
        right: "        __syncthreads();\n        float factor[2];",
        wrong: "        float factor[2];",
        sources: &["attention"],
        op: attention,
    },
    Mutation {
        name: "swapped operands of an mma",
        file: "attention.cu",
        right: "mma<T>(score[n], a[d], b[0], b[1]);",
        wrong: "mma<T>(score[n], a[d], b[1], b[0]);",
        sources: &["attention"],
        op: attention,
    },
    Mutation {
        name: "swapped inputs",
        file: "layout.cu",
        right: "*(const P *)(c < p.left ? a + row * p.left + c",
        wrong: "*(const P *)(c >= p.left ? a + row * p.left + c",
        sources: &["layout"],
        op: |op| matches!(op, Op::ConcatChannels { .. }),
    },
    Mutation {
        name: "an output that is not written",
        file: "layer_norm.cu",
        right: "    for (unsigned c = lane; c < p.channels; c += 32) {\n        float y",
        wrong: "    for (unsigned c = lane; c + 1 < p.channels; c += 32) {\n        float y",
        sources: &["layer_norm"],
        op: |op| matches!(op, Op::LayerNorm { .. }),
    },
    Mutation {
        name: "a wrong stride",
        file: "product.cuh",
        right: "*(Pack<float, 2> *)(to + 8 * STRIDE)",
        wrong: "*(Pack<float, 2> *)(to + 8 * BN)",
        sources: &["conv2d"],
        op: conv2d,
    },
    Mutation {
        name: "a read beyond the weights",
        file: "product.cuh",
        right: "w[i] = column < width ? (column + (gate ? width : 0)) * k : OUTSIDE;",
        wrong: "w[i] = (column + (gate ? width : 0)) * k;",
        sources: &["linear"],
        op: linear,
    },
    Mutation {
        name: "a barrier for half of the block",
        file: "product.cuh",
        right: "        __syncthreads();\n        finish<T, BN, THREADS, PART, TM>",
        wrong: "        if (threadIdx.x < THREADS / 2) __syncthreads();\n        finish<T, BN, THREADS, PART, TM>",
        sources: &["linear"],
        op: linear,
    },
    Mutation {
        name: "a mask that hides one key too many",
        file: "attention.cu",
        right: "key < p.keys && !(p.causal && key > query)",
        wrong: "key < p.keys && !(p.causal && key >= query)",
        sources: &["attention"],
        op: attention,
    },
    Mutation {
        name: "a run of a long sum that is left out",
        file: "split_k.cu",
        right: "for (unsigned run = 1; run < p.runs; run++)",
        wrong: "for (unsigned run = 1; run + 1 < p.runs; run++)",
        sources: &["split_k"],
        op: conv2d,
    },
    Mutation {
        name: "a run that begins among another one's channels",
        file: "product.cuh",
        right: "c = block % per_tap * 4 * V;",
        wrong: "c = block % per_tap * V;",
        sources: &["conv2d"],
        op: conv2d,
    },
    Mutation {
        name: "a chunk of a swizzled tile in another one's place",
        file: "product.cuh",
        right: "((2 * k + w_chunk) ^ w_row / 2 % 4) * V",
        wrong: "((2 * k + w_chunk) ^ w_row / 4 % 4) * V",
        sources: &["linear"],
        op: linear,
    },
];

/// The cases with their inputs in every type, and what is right for them.
#[derive(Default)]
struct Answers(HashMap<(usize, usize), Option<Vec<f64>>>);

impl Answers {
    /// Whatever is wrong in the results of one device, up to the first objection.
    fn objection(&mut self, subjects: &[Subject], op: fn(&Op) -> bool) -> Option<String> {
        // The cheap ones, and the cheapest first: a mistake that shows only at great sizes is none of these.
        let size = |case: &Case| case.data().tensors.iter().map(|x| x.values.len()).sum::<usize>();
        let of_op = cases().into_iter().enumerate().filter(|(_, case)| op(&case.op));
        let mut cases: Vec<_> = of_op.map(|(index, case)| (size(&case), index, case)).collect();
        cases.retain(|(size, ..)| *size <= LARGEST);
        cases.sort_by_key(|(size, ..)| *size);
        for (_, index, case) in &cases {
            for (i, subject) in subjects.iter().enumerate() {
                let data = case.data().rounded(subject.precision, subject.dtype());
                let want = self.0.entry((*index, i)).or_insert_with(|| {
                    let want = reference(&case.op, &data);
                    case.fits(subject.dtype(), want.iter().fold(0.0, |most, x| most.max(x.abs()))).then_some(want)
                });
                let Some(want) = want else { continue };
                let answer = watched(subject, case, &data, want.len())
                    .and_then(|got| close(want, &got, case.tolerance_in(subject.dtype())));
                if let Err(objection) = answer {
                    return Some(format!("{} {:?}: {objection}", subject.name, case.op));
                }
            }
        }
        None
    }
}

fn subjects(index: usize) -> Vec<Subject> {
    let device = open(&[DeviceId::new(DeviceKind::Cuda, index)]).unwrap().remove(0);
    PRECISIONS
        .into_iter()
        .filter(|precision| device.input_type(*precision).is_some())
        .map(|precision| Subject { precision, ..Subject::f32(precision.to_string(), device.clone()) })
        .collect()
}

/// A host build of the kernels with one mistake; what it does not touch is taken from the rig's own build.
fn build(rig: &Rig, mutation: &Mutation, folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, out) = (folder.join("kernels"), folder.join("out"));
    let objects = out.join("objects_800");
    fs::create_dir_all(&sources).unwrap();
    fs::create_dir_all(&objects).unwrap();
    for file in fs::read_dir(root.join("kernels")).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            fs::copy(&file, sources.join(file.file_name().unwrap())).unwrap();
        }
    }
    let text = fs::read_to_string(sources.join(mutation.file)).unwrap();
    assert_eq!(
        text.matches(mutation.right).count(),
        1,
        "{}: {} says once:\n{}",
        mutation.name,
        mutation.file,
        mutation.right
    );
    fs::write(sources.join(mutation.file), text.replacen(mutation.right, mutation.wrong, 1)).unwrap();
    for file in fs::read_dir(rig.folder().join("objects_800")).unwrap().map(|entry| entry.unwrap().path()) {
        let is_new = mutation.sources.iter().any(|source| file.file_stem().is_some_and(|stem| stem == *source));
        if file.extension().is_some_and(|extension| extension == "o") && !is_new {
            // Written now, so newer than the sources.
            fs::write(objects.join(file.file_name().unwrap()), fs::read(&file).unwrap()).unwrap();
        }
    }
    let built = Command::new(root.join("tests/cuda_rig/build_kernels"))
        .args([&sources, &out])
        .arg("800")
        .env("RIG_DIR", rig.folder())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}\n{}", mutation.name, String::from_utf8_lossy(&built.stderr));
    out
}

#[test]
fn mistakes_in_kernels_are_objected_to() {
    let Some(rig) = Rig::here() else { return };
    // A GPU has one set of kernels in a process: each mistake gets a GPU.
    rig.set("DEVICES", &(MUTATIONS.len() + 1).to_string());
    let mut answers = Answers::default();
    for op in [linear as fn(&Op) -> bool, attention] {
        assert_eq!(answers.objection(&subjects(0), op), None, "the kernels as they are");
    }
    let folder = tempfile::tempdir().unwrap();
    let builds = std::thread::scope(|scope| {
        let (rig, folder) = (&rig, folder.path());
        let build = |(i, mutation)| scope.spawn(move || build(rig, mutation, &folder.join(format!("{i}"))));
        let builds: Vec<_> = MUTATIONS.iter().enumerate().map(build).collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect::<Vec<_>>()
    });
    let mut missed = Vec::new();
    for (i, (mutation, kernels)) in MUTATIONS.iter().zip(builds).enumerate() {
        rig.set("KERNELS", kernels.to_str().unwrap());
        let subjects = subjects(i + 1);
        // In order first, then with threads and copies as chance wants them.
        let objection = ["0", "1", "2"].into_iter().find_map(|seed| {
            rig.set("DELAYS", seed);
            answers.objection(&subjects, mutation.op)
        });
        rig.set("DELAYS", "0");
        match objection {
            Some(objection) => println!("{}: {objection}", mutation.name),
            None => missed.push(mutation.name),
        }
    }
    rig.reset();
    assert!(missed.is_empty(), "nobody objects to {missed:?}");
}
