//! Model folders whose pipeline or scheduler is not as usual, beside what diffusers makes of them:
//! tests/golden/circumstances.json, which tests/reference/circumstances.py writes.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use crate::common;
use sdshard::{
    DeviceMap, Engine, Largest, Model, ModelFiles, Plan, Request, Result, backend,
    pipeline::request::Output,
    scheduler::{SchedulerConfig, SchedulerKind, Solver, keys, schedule},
};
use serde_json::{Map, Value};
use tempfile::TempDir;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/circumstances.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn rows<'a>(golden: &'a Value, name: &str) -> &'a [Value] {
    let rows = golden[name].as_array().unwrap();
    assert!(!rows.is_empty());
    rows
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The small model with a row's changes: a file's keys are replaced, or taken out where the value is "absent".
fn model_of(row: &Value) -> (TempDir, Arc<Model>) {
    let folder = common::copy_of_tiny();
    let root = folder.path().join("model");
    for (file, changes) in row["changes"].as_object().unwrap() {
        let path = root.join(file);
        let mut config: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config.extend(changes.as_object().unwrap().clone());
        config.retain(|_, value| value != "absent");
        fs::write(&path, Value::Object(config).to_string()).unwrap();
    }
    let model = open(&root).unwrap_or_else(|error| panic!("{row}: {error}"));
    (folder, Arc::new(model))
}

fn open(root: &Path) -> Result<Model> {
    Model::open(ModelFiles::folder(root)?, None)
}

fn timesteps(config: &SchedulerConfig, steps: usize) -> Vec<f32> {
    schedule(config, steps).unwrap().steps.iter().map(|step| step.timestep).collect()
}

#[test]
fn the_scheduler_is_the_one_that_the_pipelines_constructor_leaves() {
    let golden = golden();
    let steps = golden["pipeline_steps"].as_u64().unwrap() as usize;
    let mut classes = BTreeSet::new();
    for row in rows(&golden, "pipelines") {
        let (_folder, model) = model_of(row);
        let what = format!("{} {}", row["class"], row["changes"]);
        classes.insert(row["class"].to_string());
        assert_eq!(model.spec.latents.height as u64, row["sample_size"].as_u64().unwrap(), "{what}");

        let own = model.spec.scheduler_for(None);
        if row["clips"].as_bool().unwrap() {
            let error = own.expect_err("clipping is not supported").to_string();
            common::has_facts(&what, &error, &["`clip_sample`", "false"]);
        } else {
            assert_eq!(timesteps(&own.unwrap(), steps), numbers(&row["own"]), "{what}");
        }
        for (name, want) in row["others"].as_object().unwrap() {
            let kind: SchedulerKind = name.parse().unwrap();
            // The pipeline's own solver, asked for by name, is the pipeline's own.
            if row["changes"]["scheduler/scheduler_config.json"]["_class_name"] == kind.solver().class_name() {
                continue;
            }
            let other = model.spec.scheduler_for(Some(kind));
            match want {
                Value::Null => assert!(other.unwrap_err().to_string().contains("clip_sample"), "{what}: {name}"),
                want => assert_eq!(timesteps(&other.unwrap(), steps), numbers(want), "{what}: {name}"),
            }
        }
    }
    assert_eq!(classes.len(), 22);
}

#[test]
fn pictures_of_odd_schedulers_are_those_of_the_reference() {
    let golden = golden();
    for row in rows(&golden, "pictures") {
        let (_folder, model) = model_of(row);
        let request = Request {
            seed: golden["seed"].as_u64().unwrap(),
            steps: golden["steps"].as_u64().unwrap() as usize,
            guidance_scale: golden["guidance_scale"].as_f64().unwrap() as f32,
            scheduler: row["scheduler"].as_str().map(|name| name.parse().unwrap()),
            output: Output::Latents,
            ..Request::new(golden["prompt"].as_str().unwrap(), &model.spec)
        };
        let largest = Largest::of([&request], &model.spec).unwrap().unwrap();
        let map = DeviceMap::parse("devices = [\"cpu\"]", "map.toml").unwrap();
        let plan = Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap();
        let picture = Engine::load(model, &plan).unwrap().submit(request).unwrap().wait().unwrap();
        let want = numbers(&row["latents"]);
        let scale = want.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        for (got, want) in picture.latents.values.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-3 * scale, "{}: {got} rather than {want}", row["what"]);
        }
    }
}

#[test]
fn every_key_of_the_reference_is_followed_rejected_or_without_effect() {
    let golden = golden();
    for row in rows(&golden, "keys") {
        let kind: SchedulerKind = row["kind"].as_str().unwrap().parse().unwrap();
        let keys = keys(kind.solver());
        let limited = keys.limited.iter().map(|(key, _)| key);
        let mut ours: Vec<&str> = keys.followed.iter().chain(limited).chain(keys.without_effect).copied().collect();
        let mut reference: Vec<&str> =
            row["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        ours.sort_unstable();
        reference.sort_unstable();
        assert_eq!(ours, reference, "{}", row["kind"]);
    }
}

#[test]
fn a_default_scheduler_that_is_not_here_is_an_error_only_where_it_is_used() {
    let folder = common::copy_of_tiny();
    let root = folder.path().join("model");
    let index = fs::read_to_string(root.join("model_index.json")).unwrap();
    fs::write(root.join("model_index.json"), index.replace("PNDMScheduler", "KDPM2DiscreteScheduler")).unwrap();
    let model = open(&root).unwrap();
    assert!(model.spec.scheduler_for(Some(Solver::Euler.into())).is_ok());
    let error = model.spec.scheduler_for(None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    common::has_facts("the default", &error.to_string(), &["KDPM2DiscreteScheduler", "--scheduler"]);
}
