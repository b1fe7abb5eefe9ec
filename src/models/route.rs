//! Which device runs each section of a network, and a forward pass through the sections.
//!
//! A network is a sequence of sections: cuts, offloaded weights, device queues and messages all use this list. The code
//! of a network names no device. It calls the forward pass for the next section, and the pass moves the tensor to the
//! device of that section; this costs nothing if the section is on the same device.

use std::cell::{Cell, RefCell};

use crate::{
    backend::{DType, Device, PersistentArena, Precision},
    error::Result,
    tensor::Tensor,
    weights::{Offload, Scope},
};

/// A device for each section in the network's order, and the precision of the section's weights there.
#[derive(Clone)]
pub struct Route(Vec<(Device, Precision)>);

impl Route {
    /// A route with one device and precision for each section.
    ///
    /// # Panics
    /// If there is no section.
    pub fn new(sections: Vec<(Device, Precision)>) -> Self {
        assert!(!sections.is_empty(), "a network has sections");
        Self(sections)
    }

    /// A route with the same device and precision for all sections.
    pub fn whole(device: &Device, precision: Precision, sections: usize) -> Self {
        Self::new(vec![(device.clone(), precision); sections])
    }

    /// The device of section `i`.
    pub fn at(&self, i: usize) -> &Device {
        &self.0[i].0
    }

    /// The precision of section `i`.
    pub fn precision(&self, i: usize) -> Precision {
        self.0[i].1
    }

    /// The type of the tensors in section `i`.
    ///
    /// # Panics
    /// If its device does not support its precision: then no layer could be loaded there.
    pub fn dtype(&self, i: usize) -> DType {
        self.at(i).input_type(self.precision(i)).expect("layers are only loaded in precisions that a device supports")
    }

    /// The device of the first section, which takes the network's input.
    pub fn first(&self) -> &Device {
        self.at(0)
    }

    /// The devices of all sections.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.iter().map(|(device, _)| device)
    }

    /// The device and the precision of each section.
    pub fn typed(&self) -> impl Iterator<Item = (&Device, Precision)> {
        self.0.iter().map(|(device, precision)| (device, *precision))
    }

    /// All devices, each once, in the order of first use.
    pub fn devices(&self) -> Vec<&Device> {
        let mut devices: Vec<&Device> = Vec::new();
        for device in self.iter() {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    /// The same route with each device replaced by its request scratch, if `scratch` has one.
    #[must_use]
    pub fn with_request_scratch(&self, scratch: &[Device]) -> Self {
        let own = |device: &Device| scratch.iter().find(|own| *own == device).unwrap_or(device).clone();
        Self(self.typed().map(|(device, precision)| (own(device), precision)).collect())
    }

    /// A pass through all sections, for weights that stay on their devices.
    pub fn pass(&self) -> ForwardPass<'_> {
        ForwardPass::new(self, None, &NoHooks)
    }
}

/// The scope for the weights of a network's section `name`, on the device that runs it. `names` are the names of all
/// sections in order.
///
/// # Panics
/// If there is no such section.
pub fn section<'a>(w: &Scope<'a>, route: &'a Route, names: &[String], name: &str) -> Scope<'a> {
    let i = names.iter().position(|other| other == name).expect("a network loads the sections that it lists");
    w.section(i, route.at(i), route.precision(i))
}

/// Called before each section of a forward pass. It may make the pass wait.
pub trait SectionHooks {
    /// Called when the pass is about to run `section`.
    ///
    /// # Errors
    /// If the pass must stop.
    fn enter(&self, section: usize) -> Result<()>;

    /// Called when `bytes` are transferred from one section to another: over a link if the two run on different
    /// devices.
    fn transfer(&self, _from: usize, _to: usize, _bytes: usize) {}
}

/// Hooks that do nothing.
pub struct NoHooks;

impl SectionHooks for NoHooks {
    fn enter(&self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// One forward pass through the sections of a network. Offloaded weights are fetched before their section runs, while
/// those of the next section on the same device are prefetched.
pub struct ForwardPass<'a> {
    route: &'a Route,
    offload: Option<&'a Offload>,
    hooks: &'a dyn SectionHooks,
    /// The sections of the pass, in order; `None` for all.
    stops: Option<Vec<usize>>,
    /// The number of sections that have begun.
    passed: Cell<usize>,
}

impl<'a> ForwardPass<'a> {
    /// A pass through all sections.
    pub fn new(route: &'a Route, offload: Option<&'a Offload>, hooks: &'a dyn SectionHooks) -> Self {
        Self { route, offload, hooks, stops: None, passed: Cell::new(0) }
    }

    /// A pass on the same devices through only these sections.
    #[must_use]
    pub fn through(&self, stops: Vec<usize>) -> Self {
        Self { stops: Some(stops), passed: Cell::new(0), ..*self }
    }

    /// The device of the first section, which takes the network's input.
    pub fn first(&self) -> &'a Device {
        self.route.first()
    }

    /// The section at position `index` of the pass.
    fn stop(&self, index: usize) -> Option<usize> {
        match &self.stops {
            Some(stops) => stops.get(index).copied(),
            None => (index < self.route.0.len()).then_some(index),
        }
    }

    /// The section that runs now.
    fn current_section(&self) -> Option<usize> {
        self.passed.get().checked_sub(1).and_then(|last| self.stop(last))
    }

    /// Begins the next section and returns its device.
    ///
    /// # Errors
    /// If a hook stops the pass, or weights cannot be fetched.
    ///
    /// # Panics
    /// If there is no further section: the network does not follow its list of sections.
    pub fn next(&self) -> Result<&'a Device> {
        let section = self.stop(self.passed.get()).expect("a network has as many sections as it lists");
        let device = self.route.at(section);
        if let (Some(offload), Some(before)) = (self.offload, self.current_section()) {
            // Evicted before the hook is called, because another request may use the device during the hook and need
            // room for its own weights.
            offload.evict(before);
        }
        self.hooks.enter(section)?;
        self.passed.set(self.passed.get() + 1);
        if let Some(offload) = self.offload {
            offload.fetch(section)?;
            if let Some(next) = self.next_on_same_device() {
                offload.prefetch(next)?;
            }
        }
        Ok(device)
    }

    /// The next section, if it is on the same device.
    fn next_on_same_device(&self) -> Option<usize> {
        let here = self.current_section()?;
        self.stop(self.passed.get()).filter(|&next| self.route.at(next) == self.route.at(here))
    }

    /// The type of the tensors in the current section.
    ///
    /// # Panics
    /// If no section has begun, or as [`Route::dtype`].
    pub fn dtype(&self) -> DType {
        self.route.dtype(self.current_section().expect("a pass has begun"))
    }

    /// Begins the next section and moves `x` to its device, cast to the section's type.
    ///
    /// # Errors
    /// As [`ForwardPass::next`], and if the device has no room.
    pub fn take(&self, x: Tensor) -> Result<Tensor> {
        let (from, to) =
            (self.current_section(), self.stop(self.passed.get()).expect("a network runs the sections that it lists"));
        if let Some(from) = from {
            self.hooks.transfer(from, to, x.bytes());
        }
        // Copied to the host before the hook is called, because this request may wait in the hook.
        let leaving = x.leave_for(self.route.at(to))?;
        drop(x);
        self.next()?;
        leaving.arrive()?.cast(self.route.dtype(to))
    }

    /// Copies `x` to the device of a later `section`, in the section's type.
    ///
    /// # Errors
    /// If that device has no room.
    pub fn send(&self, x: &Tensor, section: usize) -> Result<Tensor> {
        if let Some(here) = self.current_section() {
            self.hooks.transfer(here, section, x.bytes());
        }
        x.to(self.route.at(section))?.cast(self.route.dtype(section))
    }
}

impl Drop for ForwardPass<'_> {
    fn drop(&mut self) {
        let (Some(offload), Some(here)) = (self.offload, self.current_section()) else { return };
        // Evicts the weights of the section that ran last and of the one that was prefetched there. Other requests may
        // already use the other devices.
        offload.evict(here);
        if let Some(next) = self.next_on_same_device() {
            offload.evict(next);
        }
    }
}

/// A small tensor that every section needs: copied once for each device and type that requests it.
pub struct Shared(RefCell<Vec<Tensor>>);

impl Shared {
    /// Shares `x`, which so far is only on its own device.
    pub fn new(x: Tensor) -> Self {
        Self(RefCell::new(vec![x]))
    }

    /// The copy on `device` in `dtype`.
    ///
    /// # Errors
    /// If there is no copy yet and the device has no room.
    pub fn on(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let mut copies = self.0.borrow_mut();
        if let Some(copy) = copies.iter().find(|copy| copy.device() == device && copy.dtype() == dtype) {
            return Ok(copy.clone());
        }
        let copy = copies[0].to(device)?.cast(dtype)?;
        copies.push(copy.clone());
        Ok(copy)
    }
}

/// The persistent arenas of one request, one for each device of a route.
#[derive(Clone)]
pub struct PersistentArenas(Vec<PersistentArena>);

impl PersistentArenas {
    /// Arenas that are on different devices.
    pub fn new(keeps: Vec<PersistentArena>) -> Self {
        Self(keeps)
    }

    /// The arena on `device`.
    ///
    /// # Panics
    /// If there is none: all devices of a route have one.
    pub fn on(&self, device: &Device) -> &PersistentArena {
        self.0.iter().find(|keep| keep.device() == device).expect("every device of a route has a persistent arena")
    }

    /// The same arenas, where ops on their tensors use the request scratch of their devices.
    #[must_use]
    pub fn with_request_scratch(&self, scratch: &[Device]) -> Self {
        let own = |keep: &PersistentArena| match scratch.iter().find(|own| *own == keep.device()) {
            Some(own) => keep.with_request_scratch(own),
            None => keep.clone(),
        };
        Self(self.0.iter().map(own).collect())
    }

    /// All arenas.
    pub fn iter(&self) -> impl Iterator<Item = &PersistentArena> {
        self.0.iter()
    }
}
