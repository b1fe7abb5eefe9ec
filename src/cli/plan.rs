//! `sdshard plan`: which device would hold what.

use std::path::Path;

use sdshard::{
    backend,
    error::Result,
    models::spec::ModelSpec,
    output::{self, Durability},
    pipeline::{
        Component,
        model::check_weights,
        placement::{Place, Reside, Sections},
        request::Request,
    },
    planner::{Largest, figure, hardware, plan::Plan},
    weights::{self, ModelFiles, Wanted},
};
use serde_json::{Map, Value, json};

use super::{
    args::PlanArgs,
    model::{self, device_map},
    names::file_name_is_possible,
    progress::Console,
    prompts::{self, Options},
    run::one_or_all,
};

/// Prints the plan for all pictures that are asked for.
pub fn run(args: &PlanArgs, console: &Console) -> Result<()> {
    args.options.check(|field| format!("--{}", field.replace('_', "-")))?;
    let asked = prompts::asked(&args.prompts, args.prompts_file.as_deref())?;
    let asked: Vec<Options> = asked.map(|options| options.or(&args.options)).collect();
    let asked = if asked.is_empty() { vec![args.options.clone()] } else { asked };
    let map = device_map(&args.model)?;
    let files = model::files(&args.model.model, Wanted::Configs, console, None)?;
    let spec = ModelSpec::load(&files)?;
    check_what_is_there(args, &files, &spec)?;
    let requests = asked.iter().map(|options| request(options, &spec)).collect::<Result<Vec<_>>>()?;
    let mut largest = Largest::of(&requests, &spec)?.expect("there is a request");
    largest.images = asked.iter().map(|options| options.num_images.unwrap_or(1)).sum();
    let devices = args.devices.as_deref().map_or_else(|| Ok(backend::visible()), hardware::read)?;
    let plan = Plan::resolve(&map, &spec, &largest, &devices)?;
    if let Some(path) = &args.svg {
        file_name_is_possible("--svg", path)?;
        output::write(path, figure::svg(&plan).as_bytes(), Durability::Synced)?;
    }
    console.print(&if args.json { as_json(&plan).to_string() } else { plan.to_string() })
}

/// What the plan has to know of a request.
fn request(options: &Options, spec: &ModelSpec) -> Result<Request> {
    let request = Request::new(options.prompt.as_deref().unwrap_or_default(), spec);
    let request = Request {
        steps: options.steps.unwrap_or(request.steps),
        guidance_scale: options.guidance_scale.unwrap_or(request.guidance_scale),
        scheduler: options.scheduler.as_deref().map(str::parse).transpose()?.or(request.scheduler),
        width: options.width.unwrap_or(request.width),
        height: options.height.unwrap_or(request.height),
        ..request
    };
    request.check(spec).map_err(|error| match &options.at {
        Some(at) => error.context(at),
        None => error,
    })?;
    Ok(request)
}

/// Compares weights and configs where there are weights, so that no plan is made for what a run would reject. A folder of
/// configs alone is planned too, and so is a model of the hub of which not all is here yet.
fn check_what_is_there(args: &PlanArgs, files: &ModelFiles, spec: &ModelSpec) -> Result<()> {
    let (name, variant) = (&args.model.model.model, args.model.model.variant.as_deref());
    let is_there = |component: Component| {
        let sources = weights::sources(files, component.name(), variant);
        sources.is_ok_and(|paths| paths.iter().all(|path| files.exists(path)))
    };
    let there = Component::ALL.into_iter().filter(|component| is_there(*component)).count();
    let is_folder = name.as_ref().is_none_or(|name| Path::new(name).exists());
    if there == Component::ALL.len() || (is_folder && there > 0) {
        check_weights(files, spec, variant)?;
    }
    Ok(())
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
                "numerics": device.class.to_string(),
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
        "steps": plan.largest.steps,
        "images": plan.largest.images,
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
        "seconds": plan.seconds_in_all(),
        "idle": plan.idle.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "reasons": plan.reasons,
        "rejected": rejected,
    })
}
