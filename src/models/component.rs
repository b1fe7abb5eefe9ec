//! The components of a model by number, and one thing for each of them.

use std::ops::{Index, IndexMut};

use serde::Serialize;

use crate::error::Result;

/// A component of a model, which is what a device map places: its index in [`ModelSpec::components`].
///
/// [`ModelSpec::components`]: super::spec::ModelSpec::components
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ComponentId(usize);

/// What a component does for a request. A request passes the stages in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Texts to features, one text at a time.
    Encode,
    /// Noise to latents, in steps.
    Denoise,
    /// Latents to a picture, one picture at a time.
    Decode,
}

/// One thing for each component of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PerComponent<T>(Vec<T>);

impl ComponentId {
    /// The number of the component in its model's list.
    pub fn index(self) -> usize {
        self.0
    }
}

impl<T> PerComponent<T> {
    /// How many components there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All components.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ComponentId> + use<T> {
        (0..self.0.len()).map(ComponentId)
    }

    /// What `f` makes of each.
    pub fn map<U>(&self, mut f: impl FnMut(ComponentId, &T) -> U) -> PerComponent<U> {
        PerComponent(self.iter().map(|(id, item)| f(id, item)).collect())
    }

    /// As [`PerComponent::map`], until an error.
    pub fn try_map<U>(&self, mut f: impl FnMut(ComponentId, &T) -> Result<U>) -> Result<PerComponent<U>> {
        self.iter().map(|(id, item)| f(id, item)).collect::<Result<_>>().map(PerComponent)
    }

    /// With their components.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ComponentId, &T)> {
        self.0.iter().enumerate().map(|(index, item)| (ComponentId(index), item))
    }
}

impl<T> From<Vec<T>> for PerComponent<T> {
    /// In the order of the components.
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
