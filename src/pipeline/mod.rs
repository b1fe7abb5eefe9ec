//! From a request to a picture: the stages, and the devices that they wait for.

mod container;
pub mod device_queue;
mod draw;
mod encode;
mod exif;
mod files;
pub mod gate;
pub mod image;
pub mod image_files;
pub mod latents;
pub mod metadata;
pub mod model;
pub mod parameters;
pub mod parts;
pub mod picture;
mod picture_file;
pub mod placement;
pub mod preprocess;
pub mod request;
mod resample;
pub mod settings;
pub mod stages;
pub mod start;
mod texts;

pub use draw::{OnProgress, Pipeline};
pub use image::{Image, PictureFormat};
pub use image_files::ImageFiles;
pub use latents::Latents;
pub use metadata::Metadata;
pub use model::Model;
pub use parts::{Instance, Parts, Placed, Slot};
pub use picture::{Picture, Progress, Span};
pub use settings::Settings;
pub use stages::branches;
pub use texts::TextCache;
