//! `sdshard plan`: shows which device would hold what.

use std::path::Path;

use sdshard::{
    backend,
    error::Result,
    figure,
    models::spec::ModelSpec,
    output::{self, Durability},
    pipeline::{
        ImageFiles, Model,
        model::check_weights,
        placement::{Place, Reside, Sections},
        request::Request,
    },
    planner::{Largest, hardware, plan::Plan},
    prompt::PromptSyntax,
    weights::{self, ModelFiles, Wanted},
};
use serde_json::{Map, Value, json};

use super::{
    args::PlanArgs,
    model::{self, device_map},
    names::file_name_is_possible,
    progress::Console,
    prompts::{self, Asked, SharedTags, flag},
    run::one_or_all,
};

/// Prints the plan for all requested pictures.
pub fn run(args: &PlanArgs, console: &Console) -> Result<()> {
    let flags = prompts::checked(&args.options, flag)?;
    let asked = prompts::asked(&args.prompts, args.prompts_file.as_deref())?;
    let mut asked: Vec<Asked> = asked.map(|asked| asked.or(&flags, None)).collect();
    if asked.is_empty() {
        asked.push(Asked { options: flags, ..Asked::default() });
    }
    let mut tags = SharedTags::default();
    for asked in &mut asked {
        tags.take(asked, None)?;
    }
    let map = device_map(&args.model)?;
    let model_args = args.model.model.with_named(&tags.into_list(), asked.iter().flat_map(Asked::texts))?;
    let is_a1111 = |asked: &Asked| asked.options.prompt_syntax == Some(PromptSyntax::A1111);
    // Only tokenizers tell how long texts are, and how many rows textual inversions make of the token tables.
    let has_embeddings = !model_args.embedding.is_empty() || !model_args.found_embeddings.is_empty();
    let needs_tokenizers = has_embeddings || asked.iter().any(is_a1111);
    let wanted = if needs_tokenizers { Wanted::Texts } else { Wanted::Configs };
    let files = model::with_found(model::files(&model_args, wanted, console, None)?, &model_args)?;
    let model = needs_tokenizers.then(|| Model::without_weights(files.clone(), None)).transpose()?;
    let images = ImageFiles::read(asked.iter().flat_map(|asked| asked.options.image_files()))?;
    let spec = match &model {
        Some(model) => model.spec.clone(),
        None => ModelSpec::load(&files)?,
    };
    let starts = asked.iter().any(|asked| asked.options.image.is_some());
    let spec = if starts { spec.with_image_encoder() } else { spec };
    check_what_is_there(args, &files, &spec)?;
    let request = |asked: &Asked| {
        let request = asked.options.request(&spec, &images, |field| asked.places.name_of(field))?;
        let chunks = model.as_ref().map_or(Ok(request.chunks), |model| model.chunks(&request))?;
        request.schedule(&spec).map_err(|error| error.context(asked.places.name_of("steps")))?;
        Ok(Request { chunks, ..request })
    };
    let requests = asked.iter().map(request).collect::<Result<Vec<_>>>()?;
    let mut largest = Largest::of(&requests, &spec)?.expect("there is a request");
    largest.images = asked.iter().map(|asked| asked.options.num_images.unwrap_or(1)).sum();
    let devices = args.devices.as_deref().map_or_else(|| Ok(backend::visible()), hardware::read)?;
    let plan = Plan::resolve(&map, &spec, &largest, &devices)?;
    if let Some(path) = &args.svg {
        file_name_is_possible("--svg", path)?;
        output::write(path, figure::svg(&plan).as_bytes(), Durability::Synced)?;
    }
    console.print(&if args.json { as_json(&plan).to_string() } else { plan.to_string() })
}

/// Compares weights with configs if the weights exist, so that no plan is made for a model that a run would reject.
/// Models whose weights are missing or incomplete, in a folder or on the hub, are planned too; what flags add to them
/// is checked in any case.
fn check_what_is_there(args: &PlanArgs, files: &ModelFiles, spec: &ModelSpec) -> Result<()> {
    let (name, variant) = (&args.model.model.model, args.model.model.variant.as_deref());
    let is_there = |component: &&str| {
        let sources = weights::sources(files, component, variant);
        sources.is_ok_and(|paths| paths.iter().all(|path| files.exists(path)))
    };
    let is_added = |component: &str| files.own_weights(component).is_some();
    let own: Vec<&str> = spec.folders().into_iter().filter(|component| !is_added(component)).collect();
    let there = own.iter().copied().filter(is_there).count();
    let is_folder = name.as_ref().is_none_or(|name| Path::new(name).exists());
    let is_whole = there == own.len() || (is_folder && there > 0);
    check_weights(files, spec, variant, |component| is_whole || is_added(component)).map(drop)
}

/// One place in the form of a device map: a device, the device of each run of sections, or two of these.
fn place_as_json(place: &Place<backend::DeviceId>) -> Value {
    let route = |sections: &Sections<backend::DeviceId>| {
        let devices = Place::Route(sections.clone()).devices();
        let mut place = match sections.reside {
            Reside::Device if devices.len() == 1 => return one_or_all(&devices),
            _ if devices.len() == 1 => json!({ "execute": devices[0] }),
            _ => json!({ "sections": sections.devices }),
        };
        match sections.reside {
            Reside::Device => {}
            elsewhere => place["reside"] = json!(elsewhere),
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
        .components
        .iter()
        .map(|(id, component)| {
            let cost = &component.cost;
            let figures = json!({
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "keep_bytes": cost.keep_bytes,
                "gflop": cost.flops / 1e9,
                "seconds": component.seconds,
                "dtype": component.dtype,
                "numerics": plan.classes(id),
            });
            (component.name.clone(), figures)
        })
        .collect();
    let replicas: Vec<_> = plan
        .replicas
        .iter()
        .map(|replica| {
            let name = |component| plan.components[component].name.clone();
            let places = replica.placement.iter().map(|(component, places)| {
                let devices: Vec<_> = places.iter().flat_map(|place| place.devices()).collect();
                (name(component), one_or_all(&devices))
            });
            let pools = replica
                .placement
                .iter()
                .map(|(component, places)| (name(component), places.iter().map(place_as_json).collect::<Value>()));
            json!({
                "placement": places.collect::<Map<_, _>>(),
                "places": pools.collect::<Map<_, _>>(),
                "in_flight": replica.in_flight,
                "batch": replica.batch,
            })
        })
        .collect();
    let devices = plan.devices.iter().map(|device| {
        let mut figures = json!(device);
        figures["components"] = device.components.iter().map(|id| plan.components[*id].name.as_str()).collect();
        figures
    });
    json!({
        "width": plan.largest.width,
        "height": plan.largest.height,
        "steps": plan.largest.steps,
        "strength": plan.largest.strength,
        "images": plan.largest.images,
        "device_map": device_map,
        "components": components,
        "replicas": replicas,
        "devices": devices.collect::<Value>(),
        "shared_weight_bytes": plan.shared_weight_bytes,
        "host_weight_bytes": plan.host_weight_bytes,
        "total_bytes": plan.total_bytes(),
        "edges": plan.edges,
        "seconds_per_image": plan.seconds_per_image,
        "images_per_second": plan.images_per_second,
        "seconds": plan.seconds_in_all(),
        "idle": plan.idle,
        "reasons": plan.reasons,
        "rejected": plan.rejected,
    })
}
