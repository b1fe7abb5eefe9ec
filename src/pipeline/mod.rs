//! From a request to a picture: the stages, and the devices that they wait for.

pub mod device_queue;
mod draw;
mod files;
pub mod gate;
pub mod image;
pub mod latents;
pub mod metadata;
pub mod model;
pub mod parts;
pub mod picture;
pub mod placement;
pub mod request;
pub mod stages;
mod texts;

pub use draw::{OnProgress, Pipeline};
pub use image::Image;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
pub use parts::{Instance, Parts, Placed, Slot};
pub use picture::{Picture, Progress, Span};
pub use stages::branches;
pub use texts::TextCache;
