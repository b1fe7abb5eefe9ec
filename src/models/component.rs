//! Numbers for the components of a model, and lists with one item for each of them.

use std::ops::{Index, IndexMut};

use serde::Serialize;

use crate::error::Result;

/// A component of a model, which is what a device map places: its index in [`ModelSpec::components`].
///
/// [`ModelSpec::components`]: super::spec::ModelSpec::components
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ComponentId(usize);

/// The work of a component for a request. A request passes the stages in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Text encoders compute the features of one text at a time.
    Encode,
    /// The encoder turns a picture to start from into latents.
    EncodeImage,
    /// The denoiser turns noise into latents, in steps.
    Denoise,
    /// The decoder turns the latents of one picture at a time into pixels.
    Decode,
}

/// A list with one item for each component of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PerComponent<T>(Vec<T>);

impl ComponentId {
    /// The number of the component in its model's list.
    pub fn index(self) -> usize {
        self.0
    }
}

impl<T> PerComponent<T> {
    /// The number of components.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The ids of all components.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ComponentId> + use<T> {
        (0..self.0.len()).map(ComponentId)
    }

    /// The results of `f` for each item.
    pub fn map<U>(&self, mut f: impl FnMut(ComponentId, &T) -> U) -> PerComponent<U> {
        PerComponent(self.iter().map(|(id, item)| f(id, item)).collect())
    }

    /// As [`PerComponent::map`], but ends at the first error.
    pub fn try_map<U>(&self, mut f: impl FnMut(ComponentId, &T) -> Result<U>) -> Result<PerComponent<U>> {
        self.iter().map(|(id, item)| f(id, item)).collect::<Result<_>>().map(PerComponent)
    }

    /// All items with the ids of their components.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ComponentId, &T)> {
        self.0.iter().enumerate().map(|(index, item)| (ComponentId(index), item))
    }
}

impl<T> From<Vec<T>> for PerComponent<T> {
    /// A list whose items are in the order of the components.
    fn from(items: Vec<T>) -> Self {
        Self(items)
    }
}

impl<T> Index<ComponentId> for PerComponent<T> {
    type Output = T;
    fn index(&self, id: ComponentId) -> &T {
        &self.0[id.0]
    }
}

impl<T> IndexMut<ComponentId> for PerComponent<T> {
    fn index_mut(&mut self, id: ComponentId) -> &mut T {
        &mut self.0[id.0]
    }
}
