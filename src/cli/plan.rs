//! `sdshard plan`: which device would hold what.

use sdshard::{
    backend,
    error::{Error, Result},
    models::spec::ModelSpec,
    pipeline::{
        output,
        placement::{Place, Reside, Sections},
    },
    planner::{Largest, figure, hardware, plan::Plan},
    weights::Wanted,
};
use serde_json::{Map, Value, json};

use super::{
    PlanArgs,
    generate::{device_map, file_name_is_possible},
    model,
    progress::Console,
    prompts::MAX_SIDE,
};

/// Prints the plan for the largest picture.
pub fn run(args: &PlanArgs, console: &Console) -> Result<()> {
    let map = device_map(&args.model)?;
    let spec = ModelSpec::load(&model::files(&args.model, Wanted::Configs, console, None)?)?;
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
    if let Some(path) = &args.svg {
        file_name_is_possible("--svg", path)?;
        output::write(path, figure::svg(&plan).as_bytes())?;
    }
    console.print(&if args.json { as_json(&plan).to_string() } else { plan.to_string() })
}

/// The name of a single device, or a list.
pub fn one_or_all(devices: &[impl ToString]) -> Value {
    match devices {
        [one] => json!(one.to_string()),
        several => json!(several.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}

/// One place, as a device map would say it: a device, the device of each run of sections, or two of these.
fn place_as_json(place: &Place<backend::DeviceId>) -> Value {
    let route = |sections: &Sections<backend::DeviceId>| {
        let devices = Place::Route(sections.clone()).devices();
        let mut place = match sections.reside {
            Reside::Device if devices.len() == 1 => return one_or_all(&devices),
            _ if devices.len() == 1 => json!({ "execute": devices[0].to_string() }),
            _ => json!({ "sections": sections.iter().map(ToString::to_string).collect::<Vec<_>>() }),
        };
        match sections.reside {
            Reside::Device => {}
            Reside::Host => place["reside"] = json!("host"),
            Reside::Disk => place["reside"] = json!("disk"),
        }
        place
    };
    match place {
        Place::Route(sections) => route(sections),
        Place::Guided { negative, positive } => json!({ "negative": route(negative), "positive": route(positive) }),
    }
}

/// The plan as one JSON object.
pub fn as_json(plan: &Plan) -> Value {
    let device_map: Map<String, Value> =
        plan.homes().iter().map(|(name, homes)| (name.to_string(), one_or_all(homes))).collect();
    let components: Map<String, Value> = plan
        .costs
        .iter()
        .map(|(component, cost)| {
            let figures = json!({
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "keep_bytes": cost.keep_bytes,
                "gflop": cost.flops / 1e9,
                "seconds": plan.seconds.get(component),
                "dtype": plan.dtypes.get(component).name(),
                "numerics": plan.classes(component),
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
            let pools = replica.placement.iter().map(|(component, places)| {
                (component.name().to_string(), places.iter().map(place_as_json).collect::<Value>())
            });
            json!({
                "placement": places.collect::<Map<_, _>>(),
                "places": pools.collect::<Map<_, _>>(),
                "in_flight": replica.in_flight,
                "batch": replica.batch,
            })
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
                "visitor_bytes": device.visitor_bytes,
                "idle_share": device.idle_share,
            })
        })
        .collect();
    let edges: Vec<_> = plan
        .edges
        .iter()
        .map(|edge| {
            json!({
                "replica": edge.replica,
                "from": edge.from.to_string(),
                "to": edge.to.to_string(),
                "what": edge.what,
                "bytes_per_image": edge.bytes_per_image,
            })
        })
        .collect();
    let rejected: Vec<_> =
        plan.rejected.iter().map(|rejected| json!({ "what": rejected.what, "why": rejected.why })).collect();
    json!({
        "width": plan.largest.width,
        "height": plan.largest.height,
        "device_map": device_map,
        "components": components,
        "replicas": replicas,
        "devices": devices,
        "shared_weight_bytes": plan.shared_weight_bytes,
        "host_weight_bytes": plan.host_weight_bytes,
        "total_bytes": plan.total_bytes(),
        "edges": edges,
        "seconds_per_image": plan.seconds_per_image,
        "images_per_second": plan.images_per_second,
        "reasons": plan.reasons,
        "rejected": rejected,
    })
}
