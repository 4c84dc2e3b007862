//! Kernel modules, unpacked and in the order in which they can be loaded.

use crate::kernel::Kernel;
use crate::output_of;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module, unpacked.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Files of modules by name, with `_` for `-` as the kernel has it.
fn files(dir: &Path, into: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, into);
        } else if let Some((stem, _)) = name.split_once(".ko") {
            into.insert(stem.replace('-', "_"), path);
        }
    }
}

/// The modules named, and before each what it depends on. What is built into the kernel is left out; what is neither
/// there nor built in is an error.
pub fn in_order(kernel: &Kernel, names: &[String]) -> anyhow::Result<Vec<Module>> {
    let mut known = BTreeMap::new();
    files(&kernel.modules, &mut known);
    let built_in = std::fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let built_in: Vec<String> = built_in
        .lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"))
        .map(|name| name.replace('-', "_"))
        .collect();
    let mut order = Vec::new();
    for name in names {
        add(&name.replace('-', "_"), &known, &built_in, &mut order)
            .with_context(|| format!("kernel {} for the module {name}", kernel.release))?;
    }
    Ok(order)
}

fn add(
    name: &str,
    known: &BTreeMap<String, PathBuf>,
    built_in: &[String],
    order: &mut Vec<Module>,
) -> anyhow::Result<()> {
    if order.iter().any(|module| module.name == name) || built_in.iter().any(|module| module == name) {
        return Ok(());
    }
    let Some(path) = known.get(name) else { bail!("there is no module {name}") };
    let bytes = unpack(path)?;
    for needed in depends(&bytes) {
        add(&needed, known, built_in, order)?;
    }
    order.push(Module { name: name.into(), bytes });
    Ok(())
}

fn unpack(path: &Path) -> anyhow::Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output_of(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => output_of(Command::new("zstd").arg("-dcq").arg(path)),
        Some("gz") => output_of(Command::new("gzip").arg("-dc").arg(path)),
        _ => Ok(std::fs::read(path)?),
    }
}

/// The module's own list of what it needs: `depends=a,b` among the strings of its section `.modinfo`. The packages come
/// without modules.dep, which is made when they are installed.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_stands_in_the_module() {
        assert_eq!(depends(b"\x7fELF..license=GPL\0depends=libcrc32c,dm-mod\0retpoline=Y\0"), ["libcrc32c", "dm_mod"]);
        assert!(depends(b"\x7fELF\0depends=\0x").is_empty() && depends(b"nothing").is_empty());
    }
}
