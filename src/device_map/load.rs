//! Loading of a device map from a name or a text.

use std::{io::ErrorKind, path::Path};

use super::{DeviceMap, SHIPPED, Strategy, fields::nearest, grammar};
use crate::{
    error::{Error, Result},
    input,
};

impl DeviceMap {
    /// Loads the map that `--device-map` names: a path (it contains `/` or ends in `.toml`), the name of a shipped map
    /// if there is no such file, or the name of a strategy.
    ///
    /// # Errors
    /// If there is no such map or strategy, the file cannot be read, or the map is not valid.
    pub fn load(name: &str) -> Result<Self> {
        if !name.contains('/') && !name.ends_with(".toml") {
            return Strategy::named(name).map(Self::from_strategy).ok_or_else(|| {
                let maps = SHIPPED.map(|(map, _)| map.trim_end_matches(".toml"));
                let strategies = Strategy::NAMED.map(|(name, _)| name);
                let near = nearest(name, &[&maps[..], &strategies[..]].concat());
                let hint = match near.filter(|near| !strategies.contains(near)) {
                    Some(near) => format!("did you mean {near}.toml, a map that comes with sdshard?"),
                    None => format!("{}; the path of a file contains a / or ends in .toml", Strategy::possible(name)),
                };
                Error::input(format!("--device-map {name}: this is neither a file nor a strategy")).hint(hint)
            });
        }
        match (input::text_or_pipe(Path::new(name)), SHIPPED.iter().find(|(shipped, _)| *shipped == name)) {
            (Ok(text), _) => Self::parse(&text, name),
            (Err(error), Some((_, text))) if error.kind() == ErrorKind::NotFound => Self::parse(text, name),
            (Err(error), _) => {
                let shipped = SHIPPED.map(|(shipped, _)| shipped).join(", ");
                Err(Error::input(format!("reading the device map {name}"))
                    .source(error)
                    .hint(format!("a file, a map that comes with sdshard ({shipped}), or {}", Strategy::possible(""))))
            }
        }
    }

    /// Reads a map. Messages call the file `file`.
    ///
    /// # Errors
    /// If the text breaks a rule that holds for any model and any machine.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let map = grammar::read(text, file)?;
        map.check()?;
        Ok(map)
    }
}
