//! Stable Diffusion sharded over whatever devices you have.
//!
//! A **model** is opened from its configs: a list of components (text encoder, UNet, VAE). A **device map** says where
//! each may run. Map, model, the largest request and the devices of this machine resolve to a **plan**: what runs where
//! and how many bytes it occupies exactly, before a weight is read. The **engine** loads the plan and draws
//! **requests**.
//!
//! ```
//! use std::sync::Arc;
//!
//! use sdshard::{DeviceMap, Engine, Largest, Model, ModelFiles, Plan, Request, Result, visible_devices};
//!
//! fn main() -> Result<()> {
//!     let model = Arc::new(Model::open(ModelFiles::folder("models/emoji")?, None)?);
//!     let request = Request { steps: 2, ..Request::new("a dog", &model.spec) };
//!
//!     let map = DeviceMap::parse(r#"devices = ["cpu:0", "cpu:1"]"#, "my map")?;
//!     let largest = Largest::of([&request], &model.spec)?.expect("there is a request");
//!     let plan = Plan::resolve(&map, &model.spec, &largest, &visible_devices())?;
//!     println!("{plan}");
//!
//!     let engine = Engine::load(model, &plan)?;
//!     let picture = engine.submit(request)?.wait()?;
//!     let image = picture.image.expect("a request asks for a picture unless it says otherwise");
//!     assert_eq!((image.width, image.height), (128, 128));
//!     Ok(())
//! }
//! ```
//!
//! `examples/generate.rs` continues this example with several requests, events and files.
//!
//! # The map
//!
//! A module uses only modules below it in this list; `tests/layers.rs` checks this.
//!
//! | module | holds |
//! |---|---|
//! | `bench` | how fast each component is here, and how near each data type is to f32 |
//! | `engine` | replicas side by side over one queue |
//! | `figure` | a plan as a drawing |
//! | `planner` | strategies and plans: what runs where, how many bytes it occupies, how long it takes |
//! | `device_map` | the language of device maps and of described devices, and the catalogue |
//! | `world` | one process among several |
//! | `pipeline` | one picture: requests, the three stages, files |
//! | `models` | the networks, and every fact about a checkpoint |
//! | `nn` | layers: what a checkpoint stores under one name, with its op |
//! | `prompt` | the syntax of prompts: weights, chunks, tags, textual inversions |
//! | `tokenizer` | texts to ids |
//! | `weights` | named tensors on disk, in a folder or on the hub |
//! | `tensor` | shapes, ops, seeded noise |
//! | `backend` | devices, memory, kernels |
//! | `scheduler`, `json`, `input`, `output`, `sync`, `error`, `device_id` | below all of them |
//!
//! # Invariants
//!
//! Each invariant makes some kind of code unnecessary.
//!
//! 1. **A tensor is dense, row-major, channels-last and immutable.** Kernels have no code for strides, tensors need no
//!    lock, and any thread may read one.
//! 2. **Checks are above the backends.** `tensor/ops.rs` compares shapes, types and devices once; a kernel gets a
//!    filled-in parameter struct and relies on it.
//! 3. **Each output element is one chain of operations**, which depends on the layer, the numerics class and the
//!    element's own image. Neither batch, threads nor placement selects another chain, so the same request gives the
//!    same bytes wherever its components run.
//! 4. **Sums are f32** or wider, whatever the type in which weights are stored.
//! 5. **Noise is an input.** No scheduler, model or backend has a random generator: the same seed and request give the
//!    same initial noise, on any device and in any replica.
//! 6. **No tensor allocates memory from the system.** Arenas are reserved at load, in the size that the plan counted
//!    with the same code.
//! 7. **The library prints nothing and does not exit.** Progress is a callback, warnings go to `tracing`; printing
//!    belongs to the program.

// The types of wgpu are nested more deeply than the compiler's default limit for checking `Send` and `Sync`.
#![recursion_limit = "256"]

// The modules are public for the program and the tests. The stable interface is the names at the top of the crate,
// which `tests/public_api.rs` compares with a list.
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod bench;
mod device_id;
#[doc(hidden)]
pub mod device_map;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod figure;
#[doc(hidden)]
pub mod input;
mod json;
#[doc(hidden)]
pub mod models;
#[doc(hidden)]
pub mod nn;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod planner;
#[doc(hidden)]
pub mod prompt;
#[doc(hidden)]
pub mod scheduler;
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod tensor;
#[doc(hidden)]
pub mod tokenizer;
#[doc(hidden)]
pub mod weights;
#[doc(hidden)]
pub mod world;

#[doc(inline)]
pub use backend::{
    DType, DeviceId, DeviceInfo, DeviceKind, NumericsClass, Precision, cpu::Convolution,
    registry::visible as visible_devices,
};
#[doc(inline)]
pub use device_map::{
    DTypes, DeviceFacts, DeviceMap, InFlight, Located, Location, MapPlace, Numerics, Replicas, Strategy,
};
#[doc(inline)]
pub use engine::{Canceller, Engine, Event, Ticket};
#[doc(inline)]
pub use error::{Error, ErrorScope, Result};
#[doc(inline)]
pub use figure::svg as draw_plan;
#[doc(inline)]
pub use models::{
    component::{ComponentId, PerComponent, Stage},
    defaults::Defaults,
    locate::locate as locate_model,
    single_file::Overrides,
    spec::{ComponentSpec, LatentSpec, ModelSpec},
};
#[doc(inline)]
pub use pipeline::{
    image::{Image, PictureFormat},
    image_files::ImageFiles,
    latents::Latents,
    metadata::Metadata,
    model::Model,
    options::RequestOptions,
    picture::{Picture, Progress, Span},
    placement::{Place, Sections},
    request::{Output, Request, Start, StartImage},
    settings::Settings,
};
#[doc(inline)]
pub use planner::{
    Cost, Largest,
    hardware::read as read_devices,
    plan::{ComponentPlan, DevicePlan, Edge, Plan, Rejected, ReplicaPlan},
};
#[doc(inline)]
pub use scheduler::{Prediction, SchedulerKind, Sigmas, Solver};
#[doc(inline)]
pub use tensor::random::Rng;
#[doc(inline)]
pub use weights::{Download, ModelFiles, Reside, Wanted, lora::LoraChoice};
