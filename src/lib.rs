//! Stable Diffusion sharded over whatever devices you have.
//!
//! A **model** is opened from its configs: a list of components (text encoder, UNet, VAE). A **device map** says where
//! each may live. Map, model, the largest request and the devices of this machine resolve to a **plan**: what runs where and what
//! it occupies, byte for byte, before a weight is read. The **engine** loads the plan and draws **requests**.
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
//! `examples/generate.rs` goes on from here: several requests, events, files.
//!
//! # The map
//!
//! A module uses only what stands below it in this list; `tests/layers.rs` checks that.
//!
//! | module | holds |
//! |---|---|
//! | `bench` | how fast each component is here |
//! | `engine` | replicas side by side over one queue |
//! | `figure` | a plan as a drawing |
//! | `planner` | device maps, strategies, plans |
//! | `pipeline` | one picture: requests, the three stages, files |
//! | `models` | the networks, and every fact about a checkpoint |
//! | `nn` | layers: what a checkpoint stores under one name, with its op |
//! | `tokenizer` | texts to ids |
//! | `weights` | named tensors on disk, in a folder or on the hub |
//! | `tensor` | shapes, ops, seeded noise |
//! | `backend` | devices, memory, kernels |
//! | `scheduler`, `json`, `input`, `output`, `sync`, `error`, `device_id` | beside all of them, and knowing none of them |
//!
//! # Invariants
//!
//! Each one removes a whole kind of code.
//!
//! 1. **A tensor is dense, row-major, channels-last and never changes.** Kernels have no stride branch, tensors need no
//!    lock, and any thread may read one.
//! 2. **Checks stand above the backends.** `tensor/ops.rs` compares shapes, types and devices once; a kernel gets a
//!    filled-in parameter struct and may trust it.
//! 3. **One chain of operations for each output element**, which depends on the layer, the numerics class and the
//!    element's own image. Neither batch, threads nor placement selects another, so the same request gives the same bytes
//!    wherever its parts run.
//! 4. **Sums are taken in f32** or wider, whatever the type that weights are stored in.
//! 5. **Noise comes in from outside.** No scheduler, model or backend owns a random generator: same seed and request,
//!    same start, on any device and in any replica.
//! 6. **No tensor asks the system for memory.** Arenas are reserved at load, in the size that the plan counted with the
//!    same code.
//! 7. **The library prints nothing and does not exit.** Progress is a callback, warnings go to `tracing`; printing
//!    belongs to the program.

// The types of wgpu are nested deeper than the compiler looks by itself for what threads may share.
#![recursion_limit = "256"]

// The modules are public for the program, the tests and whoever wants to look inside. What a program may rely on are the names
// at the top, which `tests/public_api.rs` compares with a list.
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod bench;
mod device_id;
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
pub mod scheduler;
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod tensor;
#[doc(hidden)]
pub mod tokenizer;
#[doc(hidden)]
pub mod weights;

#[doc(inline)]
pub use backend::{DType, DeviceId, DeviceInfo, DeviceKind, NumericsClass, registry::visible as visible_devices};
#[doc(inline)]
pub use engine::{Canceller, Engine, Event, Ticket};
#[doc(inline)]
pub use error::{Error, Result, ErrorScope};
#[doc(inline)]
pub use figure::svg as draw_plan;
#[doc(inline)]
pub use models::{
    component::{ComponentId, PerComponent, Stage},
    defaults::Defaults,
    spec::{ComponentSpec, LatentSpec, ModelSpec},
};
#[doc(inline)]
pub use pipeline::{
    image::Image,
    latents::Latents,
    metadata::Metadata,
    model::Model,
    picture::{Picture, Progress, Span},
    placement::{Place, Sections},
    request::{Output, Request, RequestOptions, Start},
};
#[doc(inline)]
pub use planner::{
    Cost, Largest, Located, Location,
    device_map::{DTypes, DeviceFacts, DeviceMap, InFlight, MapPlace, Numerics, Replicas, Strategy},
    hardware::read as read_devices,
    plan::{ComponentPlan, DevicePlan, Edge, Plan, Rejected, ReplicaPlan},
};
#[doc(inline)]
pub use scheduler::SchedulerKind;
#[doc(inline)]
pub use tensor::random::Rng;
#[doc(inline)]
pub use weights::{Download, ModelFiles, Reside, Wanted, locate as locate_model};
