//! `sdshard plan`: which device would hold what.

use sdshard::{
    backend,
    error::{Error, Result},
    models::spec::ModelSpec,
    planner::{Largest, hardware, plan::Plan},
};
use serde_json::json;

use super::{PlanArgs, generate::device_map, model, progress::Console, prompts::MAX_SIDE};

/// Prints the plan for the largest picture.
pub fn run(args: &PlanArgs, console: &Console) -> Result<()> {
    let map = device_map(&args.model)?;
    let spec = ModelSpec::load(&model::files(&args.model, console)?)?;
    let (defaults, scale) = (&spec.defaults, spec.vae.scale());
    let largest = Largest {
        width: args.width.unwrap_or(defaults.width),
        height: args.height.unwrap_or(defaults.height),
        also: Vec::new(),
        guided: defaults.guidance_scale > 1.0,
        scheduler: None,
        steps: defaults.steps,
    };
    for (name, pixels) in [("width", largest.width), ("height", largest.height)] {
        if pixels > MAX_SIDE {
            return Err(Error::input(format!("--{name}: at most {MAX_SIDE} is possible")).found(pixels.to_string()));
        }
        if pixels == 0 || !pixels.is_multiple_of(scale) {
            return Err(Error::input(format!("--{name}: has to be a multiple of {scale}")).found(pixels.to_string()));
        }
    }
    let devices = args.devices.as_deref().map_or_else(|| Ok(backend::visible()), hardware::read)?;
    let plan = Plan::resolve(&map, &spec, &largest, &devices)?;
    console.print(&if args.json { as_json(&plan).to_string() } else { plan.to_string() })
}

/// The name of a single device, or a list.
pub fn one_or_all(devices: &[impl ToString]) -> serde_json::Value {
    match devices {
        [one] => json!(one.to_string()),
        several => json!(several.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}

/// The plan as one JSON object.
pub fn as_json(plan: &Plan) -> serde_json::Value {
    let device_map: serde_json::Map<String, serde_json::Value> =
        plan.homes().iter().map(|(name, homes)| (name.to_string(), one_or_all(homes))).collect();
    let components: serde_json::Map<String, serde_json::Value> = plan
        .costs
        .iter()
        .map(|(component, cost)| {
            let figures = json!({
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "keep_bytes": cost.keep_bytes,
                "gflop": cost.flops / 1e9,
                "dtype": plan.dtypes.get(component).name(),
            });
            (component.name().to_string(), figures)
        })
        .collect();
    let replicas: Vec<_> = plan
        .replicas
        .iter()
        .map(|replica| {
            let places = replica.placement.iter().map(|(component, places)| {
                let devices: Vec<_> = places.iter().flat_map(|place| place.devices()).collect();
                (component.name().to_string(), one_or_all(&devices))
            });
            json!({ "placement": places.collect::<serde_json::Map<_, _>>(), "in_flight": replica.in_flight })
        })
        .collect();
    let devices: Vec<_> = plan
        .devices
        .iter()
        .map(|device| {
            json!({
                "name": device.id.to_string(),
                "numerics": device.class,
                "components": device.components.iter().map(|component| component.name()).collect::<Vec<_>>(),
                "budget_bytes": device.budget_bytes,
                "overhead_bytes": device.overhead_bytes,
                "weight_bytes": device.weight_bytes,
                "activation_bytes": device.activation_bytes,
                "keep_bytes": device.keep_bytes,
            })
        })
        .collect();
    json!({
        "width": plan.largest.width,
        "height": plan.largest.height,
        "device_map": device_map,
        "components": components,
        "replicas": replicas,
        "devices": devices,
        "shared_weight_bytes": plan.shared_weight_bytes,
        "total_bytes": plan.total_bytes(),
    })
}
