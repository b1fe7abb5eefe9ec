//! The ControlNets of a batch, which run before the denoiser in each step in which they are active.

use super::{branch::Branch, parts::Placed, request::Control};
use crate::{
    backend::PersistentArena,
    error::Result,
    models::{
        controlnet::ControlConditioning,
        route::{NoHooks, PersistentArenas, SectionHooks},
        unet::{Condition, Residuals},
    },
    scheduler::{Schedule, Step},
    tensor::{Shape, Tensor},
};

/// A ControlNet with its pictures, which runs before the denoiser in each step in which it is active.
pub struct Controller<'a> {
    /// The network.
    pub placed: &'a Placed,
    /// The persistent arenas of its devices.
    pub keeps: &'a PersistentArenas,
    /// The conditions of all branches, one branch after the other.
    pub rows: Vec<Condition>,
    /// The pixels of the picture of each picture of the batch, `[height, width, 3]` from 0 to 1.
    pub pictures: Vec<Vec<f32>>,
    /// The height and width of the pictures.
    pub size: [usize; 2],
    /// How strongly and when it works; its image is not used.
    pub control: &'a Control,
}

impl Controller<'_> {
    pub(super) fn condition(&self, hooks: &dyn SectionHooks) -> Result<ControlConditioning> {
        let pictures: Vec<&[f32]> = self.pictures.iter().map(Vec::as_slice).collect();
        let network = self.placed.network.controlnet();
        network.condition(&self.rows, &pictures, self.size, &self.placed.pass(hooks), self.keeps)
    }

    /// Computes the residuals for these latents, `[height, width, channels]` of each picture in `shape`.
    pub(super) fn call(
        &self,
        step: &Step,
        shape: Shape,
        latents: &[Vec<f32>],
        conditioning: &ControlConditioning,
        hooks: &dyn SectionHooks,
        put: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let (network, device) = (self.placed.network.controlnet(), self.placed.route.first());
        let rows = latents.iter().cycle().take(self.rows.len()).flatten();
        let scaled: Vec<f32> = rows.map(|value| step.input_scale * value).collect();
        let latents = Tensor::new(device, shape.with_batch(self.rows.len()), &scaled)?;
        let time = network.time_features(step.timestep, device)?;
        network.forward(&latents, &time, conditioning, &self.placed.pass(hooks), put)
    }
}

/// What controls a denoiser.
pub enum Controls<'a> {
    /// ControlNets.
    Networks(Vec<Controller<'a>>),
    /// As many ControlNets, whose residuals have no values: for runs without data.
    Sample(usize),
}

/// What a ControlNet gives to the denoiser in a step.
pub(super) struct Controlled {
    scale: f32,
    /// The residuals for each branch.
    residuals: Vec<Vec<Tensor>>,
}

impl Controls<'_> {
    pub(super) fn condition(&self) -> Result<Vec<ControlConditioning>> {
        match self {
            Self::Networks(networks) => networks.iter().map(|network| network.condition(&NoHooks)).collect(),
            Self::Sample(_) => Ok(Vec::new()),
        }
    }

    /// The residuals of all ControlNets that are active at step `done` of the schedule, on the devices that take them.
    pub(super) fn call(
        &self,
        conditionings: &[ControlConditioning],
        branches: &[Branch],
        schedule: &Schedule,
        done: usize,
        latents: &[Tensor],
    ) -> Result<Vec<Controlled>> {
        let (step, steps, shape) = (&schedule.steps[done], schedule.steps.len(), latents[0].shape());
        let new = |scale: f32| Controlled { scale, residuals: branches.iter().map(|_| Vec::new()).collect() };
        match self {
            Self::Networks(networks) => {
                let active = |(network, _): &(&Controller, _)| network.control.is_active(done, steps);
                let active: Vec<_> = networks.iter().zip(conditionings).filter(active).collect();
                if active.is_empty() {
                    return Ok(Vec::new());
                }
                let latents = latents.iter().map(Tensor::read).collect::<Result<Vec<_>>>()?;
                let call = |(network, conditioning): (&Controller, &ControlConditioning)| {
                    let mut controlled = new(network.control.scale);
                    network.call(step, shape, &latents, conditioning, &NoHooks, |i, residual| {
                        controlled.push(branches, i, |keep| residual.keep(keep))
                    })?;
                    Ok(controlled)
                };
                active.into_iter().map(call).collect()
            }
            // The first of several steps is made without them, as by requests whose ControlNets begin later: allocations in
            // another order may need more of an arena.
            Self::Sample(_) if steps > 1 && done == 0 => Ok(Vec::new()),
            Self::Sample(count) => {
                let rows: usize = branches.iter().map(|branch| branch.rows.len()).sum();
                let call = |_| {
                    let mut controlled = new(1.0);
                    let shapes = branches[0].denoiser.residual_shapes([rows, shape.dims()[1], shape.dims()[2]]);
                    for (i, shape) in shapes.into_iter().enumerate() {
                        controlled.push(branches, i, |keep| Tensor::uninitialized_in(keep, shape))?;
                    }
                    Ok(controlled)
                };
                (0..*count).map(call).collect()
            }
        }
    }
}

impl Controlled {
    /// Adds residual `i`, which `make` makes in the arena of each branch that takes it.
    fn push(&mut self, branches: &[Branch], i: usize, make: impl Fn(&PersistentArena) -> Result<Tensor>) -> Result<()> {
        for (branch, residuals) in branches.iter().zip(&mut self.residuals) {
            residuals.push(make(branch.keeps.on(branch.taker(i)))?);
        }
        Ok(())
    }

    /// The residuals for a branch, whose rows begin at `row` of all rows.
    pub(super) fn of_branch(all: &[Self], branch: usize, row: usize) -> Vec<Residuals<'_>> {
        all.iter().map(|one| Residuals { tensors: &one.residuals[branch], row, scale: one.scale }).collect()
    }
}
