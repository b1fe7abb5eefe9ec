//! Which device runs each section of a network, and a pass through them.
//!
//! A network is a sequence of sections, the one list that cuts, visiting weights, gates and messages use. Its code names no
//! device: it passes, and what it works on comes along to wherever the next section runs, which is free when that is here.

use std::cell::{Cell, RefCell};

use crate::{
    backend::{DType, Device, Keep},
    error::Result,
    tensor::Tensor,
    weights::{Offload, Scope},
};

/// A device for each section, in the network's order, and the type in which it computes there.
#[derive(Clone)]
pub struct Route(Vec<(Device, DType)>);

impl Route {
    /// One device and type for each section.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(sections: Vec<(Device, DType)>) -> Self {
        assert!(!sections.is_empty(), "a network has sections");
        Self(sections)
    }

    /// The same device and type for all.
    pub fn whole(device: &Device, dtype: DType, sections: usize) -> Self {
        Self::new(vec![(device.clone(), dtype); sections])
    }

    /// Where section `i` runs.
    pub fn at(&self, i: usize) -> &Device {
        &self.0[i].0
    }

    /// The type of what section `i` works on.
    pub fn dtype(&self, i: usize) -> DType {
        self.0[i].1
    }

    /// Where the network's input is wanted.
    pub fn first(&self) -> &Device {
        self.at(0)
    }

    /// The device of each section.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.iter().map(|(device, _)| device)
    }

    /// The device of each section and the type in which it computes there.
    pub fn typed(&self) -> impl Iterator<Item = (&Device, DType)> {
        self.0.iter().map(|(device, dtype)| (device, *dtype))
    }

    /// Every device, each once, in the order of first use.
    pub fn devices(&self) -> Vec<&Device> {
        let mut devices: Vec<&Device> = Vec::new();
        for device in self.iter() {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }

    /// The same with those devices that have a lane in `lanes` replaced by it.
    #[must_use]
    pub fn with_lanes(&self, lanes: &[Device]) -> Self {
        let lane = |device: &Device| lanes.iter().find(|lane| *lane == device).unwrap_or(device).clone();
        Self(self.typed().map(|(device, dtype)| (lane(device), dtype)).collect())
    }

    /// A pass through all sections, whose weights are where they are used.
    pub fn pass(&self) -> ForwardPass<'_> {
        ForwardPass::new(self, None, &NoHooks)
    }
}

/// Where the weights of a network's section `name` are read: for the device that runs it. `names` are those of all sections,
/// in their order.
///
/// # Panics
/// If there is no such section.
pub fn section<'a>(w: &Scope<'a>, route: &'a Route, names: &[String], name: &str) -> Scope<'a> {
    let i = names.iter().position(|other| other == name).expect("a network loads the sections that it lists");
    w.section(i, route.at(i), route.dtype(i))
}

/// Who is told when a pass comes to a section, and may let it wait there.
pub trait SectionHooks {
    /// The pass comes to `section`.
    ///
    /// # Errors
    /// If it may not go on.
    fn enter(&self, section: usize) -> Result<()>;

    /// `bytes` go from one section to another; over a link if these run on different devices.
    fn transfer(&self, _from: usize, _to: usize, _bytes: usize) {}
}

/// Nobody.
pub struct NoHooks;

impl SectionHooks for NoHooks {
    fn enter(&self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// One way through the sections of a network. Weights that rest elsewhere come to each section as the pass does, and the
/// next section's on the same device meanwhile.
pub struct ForwardPass<'a> {
    route: &'a Route,
    offload: Option<&'a Offload>,
    hooks: &'a dyn SectionHooks,
    /// The sections that it comes by; `None` for all.
    stops: Option<Vec<usize>>,
    /// Stops that it has come by.
    passed: Cell<usize>,
}

impl<'a> ForwardPass<'a> {
    /// Through all sections.
    pub fn new(route: &'a Route, offload: Option<&'a Offload>, hooks: &'a dyn SectionHooks) -> Self {
        Self { route, offload, hooks, stops: None, passed: Cell::new(0) }
    }

    /// The same devices, through these sections only.
    #[must_use]
    pub fn through(&self, stops: Vec<usize>) -> Self {
        Self { stops: Some(stops), passed: Cell::new(0), ..*self }
    }

    /// Where the network's input is wanted.
    pub fn first(&self) -> &'a Device {
        self.route.first()
    }

    /// The section that is stop number `index`.
    fn stop(&self, index: usize) -> Option<usize> {
        match &self.stops {
            Some(stops) => stops.get(index).copied(),
            None => (index < self.route.0.len()).then_some(index),
        }
    }

    /// Where it stands.
    fn here(&self) -> Option<usize> {
        self.passed.get().checked_sub(1).and_then(|last| self.stop(last))
    }

    /// Goes to the next section and gives its device.
    ///
    /// # Errors
    /// If the pass may not go on, or weights cannot be brought.
    ///
    /// # Panics
    /// If there is no further section: the network has gone another way than its list of sections.
    pub fn next(&self) -> Result<&'a Device> {
        let section = self.stop(self.passed.get()).expect("a network has as many sections as it lists");
        let device = self.route.at(section);
        if let (Some(offload), Some(before)) = (self.offload, self.here()) {
            // Before the border: whoever comes to this device next has room for visitors of its own.
            offload.evict(before);
        }
        self.hooks.enter(section)?;
        self.passed.set(self.passed.get() + 1);
        if let Some(offload) = self.offload {
            offload.fetch(section)?;
            if let Some(next) = self.next_here() {
                offload.prefetch(next)?;
            }
        }
        Ok(device)
    }

    /// The next section, if it is on the same device.
    fn next_here(&self) -> Option<usize> {
        let here = self.here()?;
        self.stop(self.passed.get()).filter(|&next| self.route.at(next) == self.route.at(here))
    }

    /// The type of what the section works on where it stands.
    ///
    /// # Panics
    /// If it stands nowhere yet.
    pub fn dtype(&self) -> DType {
        self.route.dtype(self.here().expect("a pass has begun"))
    }

    /// Goes to the next section and takes `x` along, which is then of that section's type.
    ///
    /// # Errors
    /// As [`ForwardPass::next`], and if the device has no room.
    pub fn take(&self, x: Tensor) -> Result<Tensor> {
        let (from, to) =
            (self.here(), self.stop(self.passed.get()).expect("a network goes by the sections that it lists"));
        if let Some(from) = from {
            self.hooks.transfer(from, to, x.bytes());
        }
        // Before the border, where this request may have to wait.
        let leaving = x.leave_for(self.route.at(to))?;
        drop(x);
        self.next()?;
        leaving.arrive()?.cast(self.route.dtype(to))
    }

    /// Sends `x` ahead to where `section` runs, in its type.
    ///
    /// # Errors
    /// If that device has no room.
    pub fn send(&self, x: &Tensor, section: usize) -> Result<Tensor> {
        if let Some(here) = self.here() {
            self.hooks.transfer(here, section, x.bytes());
        }
        x.to(self.route.at(section))?.cast(self.route.dtype(section))
    }
}

impl Drop for ForwardPass<'_> {
    fn drop(&mut self) {
        let (Some(offload), Some(here)) = (self.offload, self.here()) else { return };
        // Where it stands, and what was expected there. Elsewhere others may be at work.
        offload.evict(here);
        if let Some(next) = self.next_here() {
            offload.evict(next);
        }
    }
}

/// A small tensor that every section needs: copied once to each device, and for each type, in which it is asked for.
pub struct Shared(RefCell<Vec<Tensor>>);

impl Shared {
    /// `x`, so far where it is.
    pub fn new(x: Tensor) -> Self {
        Self(RefCell::new(vec![x]))
    }

    /// The copy on `device` in `dtype`.
    ///
    /// # Errors
    /// If there is none yet and the device has no room.
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

/// What one request keeps on each device of a route.
#[derive(Clone)]
pub struct Keeps(Vec<Keep>);

impl Keeps {
    /// One for each device.
    pub fn new(keeps: Vec<Keep>) -> Self {
        Self(keeps)
    }

    /// The one on `device`.
    ///
    /// # Panics
    /// If there is none: a route's devices all have one.
    pub fn on(&self, device: &Device) -> &Keep {
        self.0.iter().find(|keep| keep.device() == device).expect("every device of a route has a keep arena")
    }

    /// The same arenas, ops on what they hold going to the lanes of their devices.
    #[must_use]
    pub fn with_lanes(&self, lanes: &[Device]) -> Self {
        let own = |keep: &Keep| match lanes.iter().find(|lane| *lane == keep.device()) {
            Some(lane) => keep.with_lane(lane),
            None => keep.clone(),
        };
        Self(self.0.iter().map(own).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Keep> {
        self.0.iter()
    }
}
