//! The largest request that a plan is made for, and the check whether another request fits the plan.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use serde::Serialize;

use crate::{
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::request::Request,
    scheduler::{Schedule, SchedulerKind, schedule_from},
};

/// The largest request that a plan is made for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Largest {
    /// The width in pixels.
    pub width: usize,
    /// The height in pixels.
    pub height: usize,
    /// The width and height of requests with other sizes, in pixels: a long strip may need more than a square of equal
    /// area.
    pub also: Vec<(usize, usize)>,
    /// Whether guidance is used, which needs two texts instead of one.
    pub guided: bool,
    /// The scheduler, whose solver decides how much is kept of earlier steps; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// The number of steps. A solver keeps less of earlier steps if there are few.
    pub steps: usize,
    /// The share of the steps that are made: below 1 if all requests start from pictures.
    pub strength: f64,
    /// The largest number of chunks that a text is filled up to.
    pub chunks: usize,
    /// Whether any request keeps some of a picture that a mask shows.
    pub masked: bool,
    /// Whether the VAE works in tiles for all requests, so that it needs memory for one tile only.
    pub vae_tiling: bool,
    /// The number of requested pictures; `usize::MAX` for an endless queue.
    pub images: usize,
}

impl Largest {
    /// The largest request of `requests`: the size with the most pixels, guidance if any request has it, and the
    /// scheduler that keeps the most of earlier steps, with the most steps. `None` if there are no requests.
    ///
    /// # Errors
    /// If a scheduler cannot be used with the model.
    pub fn of<'a>(requests: impl IntoIterator<Item = &'a Request>, spec: &ModelSpec) -> Result<Option<Self>> {
        let mut largest: Option<(Self, usize)> = None;
        let mut sizes = BTreeSet::new();
        let mut images = 0;
        // Many requests have few different schedules, so each schedule is made once.
        let mut kept_by_schedule = HashMap::new();
        for request in requests {
            images += 1;
            let strength = request.strength();
            let kept = match kept_by_schedule.entry((request.scheduler, request.steps, strength.to_bits())) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(request.schedule(spec)?.kept()),
            };
            let (width, height, guided) = (request.width, request.height, request.is_guided(spec));
            let masked = request.is_masked();
            sizes.insert((width, height));
            let (largest, most_kept) = largest.get_or_insert_with(|| {
                let (scheduler, steps) = (request.scheduler, request.steps);
                let (also, images, vae_tiling) = (Vec::new(), 0, true);
                let this = Self {
                    width,
                    height,
                    also,
                    guided,
                    scheduler,
                    steps,
                    strength,
                    chunks: 1,
                    masked,
                    vae_tiling,
                    images,
                };
                (this, kept)
            });
            largest.guided |= guided;
            largest.masked |= masked;
            largest.chunks = largest.chunks.max(request.chunks);
            largest.vae_tiling &= request.vae_tiling;
            largest.strength = largest.strength.max(strength);
            if kept > *most_kept || kept == *most_kept && request.steps > largest.steps {
                (largest.scheduler, largest.steps, *most_kept) = (request.scheduler, request.steps, kept);
            }
            if width * height > largest.width * largest.height {
                (largest.width, largest.height) = (width, height);
            }
        }
        if let Some((largest, _)) = &mut largest {
            largest.images = images;
            sizes.remove(&(largest.width, largest.height));
            largest.also = sizes.into_iter().collect();
        }
        Ok(largest.map(|(largest, _)| largest))
    }

    /// The steps that are planned for.
    ///
    /// # Errors
    /// If the scheduler cannot be used with the model, or cannot make these steps.
    pub fn schedule(&self, spec: &ModelSpec) -> Result<Schedule> {
        schedule_from(&spec.scheduler_for(self.scheduler)?, self.steps, self.strength)
    }

    /// Whether `request` fits the plan.
    ///
    /// # Errors
    /// If the request is larger than every planned size, has guidance or a mask where none was planned, or a solver that
    /// keeps more of earlier steps.
    pub(super) fn admits(&self, request: &Request, spec: &ModelSpec) -> Result<()> {
        let sizes = [(self.width, self.height)].into_iter().chain(self.also.iter().copied());
        let wanted = format!("{}x{}", request.width, request.height);
        if !sizes.clone().any(|(width, height)| request.width <= width && request.height <= height) {
            let planned = sizes.map(|(width, height)| format!("{width}x{height}")).collect::<Vec<_>>().join(", ");
            return Err(Error::input(format!("the plan has no room for a picture of {wanted}"))
                .found(format!("a plan for {planned} at most"))
                .hint("a plan for the largest request that is to come: Largest::of, then Plan::resolve"));
        }
        if request.is_guided(spec) && !self.guided {
            return Err(Error::input("the plan has no room for guidance, which needs two texts instead of one")
                .found(format!("a guidance scale of {}", request.guidance_scale))
                .hint("a plan for a request with guidance, or a guidance scale of 1"));
        }
        if request.is_masked() && !self.masked {
            return Err(Error::input("the plan has no room for a mask").hint("a plan for a request with a mask"));
        }
        if self.vae_tiling && !request.vae_tiling {
            return Err(Error::input("the plan has room for the VAE's tiles only, not for a picture as a whole")
                .hint("a plan for a request without tiles, or a request with `vae_tiling`"));
        }
        if request.chunks > self.chunks {
            return Err(Error::input("the plan has no room for texts of this length")
                .found(format!("{} chunks; planned: {}", request.chunks, self.chunks))
                .hint("a plan for a request with texts that are at least as long"));
        }
        let (needed, planned) = (request.schedule(spec)?.kept(), self.schedule(spec)?.kept());
        if needed > planned {
            return Err(Error::input("the plan has no room for what this scheduler remembers of earlier steps")
                .found(format!("{needed} tensors of latents; planned: {planned}"))
                .hint("a plan for a request with this scheduler and at least as many steps"));
        }
        Ok(())
    }
}
