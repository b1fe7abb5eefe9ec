//! The denoiser with the texts of a batch: one branch for all of them, or one each for negative and positive prompts.

use super::parts::{Instance, Placed, Slot};
use crate::{
    backend::Device,
    error::Result,
    models::{
        route::{ForwardPass, PersistentArenas, Route, SectionHooks},
        unet::{Condition, Conditioning, Residuals, Unet},
    },
    scheduler::Step,
    tensor::Tensor,
    weights::Offload,
};

/// A denoiser with some texts. A batch has one branch for all of its texts, or one for the negative prompts and one for
/// the positive prompts, which run at the same time if they share no device.
pub struct Branch<'a> {
    /// The name of the component, for messages.
    pub name: &'a str,
    /// The network.
    pub denoiser: &'a Unet,
    /// The offloaded weights, if there are any.
    pub offload: Option<&'a Offload>,
    /// The device of each section.
    pub route: &'a Route,
    /// The persistent arenas of these devices.
    pub keeps: &'a PersistentArenas,
    /// Called before each section.
    pub hooks: &'a (dyn SectionHooks + Sync),
    /// The conditions: one for each picture; if this branch runs both prompts, first all negative ones, then all
    /// positive ones.
    pub rows: Vec<Condition>,
}

impl Branch<'_> {
    pub(super) fn pass(&self) -> ForwardPass<'_> {
        ForwardPass::new(self.route, self.offload, self.hooks)
    }

    /// The device that takes residual `i` of a ControlNet.
    pub(super) fn taker(&self, i: usize) -> &Device {
        self.route.at(self.denoiser.residual_section(i))
    }

    /// The network's input for these latents, a row for each text, on the device of the first section.
    pub(super) fn input(&self, step: &Step, latents: &[Tensor]) -> Result<Tensor> {
        let scale = |latents: &Tensor| -> Result<Tensor> {
            let latents = latents.to(self.route.first())?;
            Tensor::scale_add(latents.shape(), &[(step.input_scale, &latents, 0)])
        };
        let mut scaled = latents.iter().map(scale).collect::<Result<Vec<_>>>()?;
        if self.rows.len() > 1 {
            // Every picture is repeated once for each of its prompts.
            let rows: Vec<&Tensor> = scaled.iter().cycle().take(self.rows.len()).collect();
            return Tensor::stack(&rows);
        }
        Ok(scaled.swap_remove(0))
    }

    /// The network's output for each text, on the device of the last section.
    pub(super) fn call(
        &self,
        step: &Step,
        latents: &Tensor,
        text: &Conditioning,
        residuals: &[Residuals],
    ) -> Result<Tensor> {
        let time = self.denoiser.time_features(step.timestep, self.route.first())?;
        let forward = || self.denoiser.forward(latents, &time, text, residuals, &self.pass());
        match (self.offload, &self.route.devices()[..]) {
            // On one device the call can be recorded once and replayed, because every step runs the same ops on the
            // same addresses.
            (None, [device]) => device.as_one(forward),
            _ => forward(),
        }
    }
}

/// The branches of an instance of the denoiser for the conditions of one batch. The negative prompts come first, if
/// there is guidance.
pub fn branches<'a>(
    instance: &'a Instance,
    slot: &'a Slot,
    mut rows: Vec<Condition>,
    guided: bool,
    hooks: &'a (dyn SectionHooks + Sync),
) -> Vec<Branch<'a>> {
    let branch = |network: &'a Placed, (route, keeps): &'a (Route, PersistentArenas), rows| Branch {
        name: &network.name,
        denoiser: network.network.denoiser(),
        offload: network.offload.as_deref(),
        route,
        keeps,
        hooks,
        rows,
    };
    match (&instance.negative, &slot.negative) {
        (Some(network), Some(own)) if guided => {
            let positive = rows.split_off(rows.len() / 2);
            vec![branch(network, own, rows), branch(&instance.positive, &slot.positive, positive)]
        }
        _ => vec![branch(&instance.positive, &slot.positive, rows)],
    }
}
