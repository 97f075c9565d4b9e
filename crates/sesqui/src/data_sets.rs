//! Published data sets as the manifests know them: what there is, and whether it is intact.

use std::path::Path;

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use sesqui_dataset::manifest::{self, Manifest};

/// One row per data set: files, problems, size, licence, and how much of it lies below `root`.
///
/// # Errors
///
/// When a manifest does not parse; a test rules it out.
pub fn list(root: &Path) -> Result<String> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(110);
    table.set_header(["data set", "what", "licence", "records", "MB", "present"]);
    for manifest in manifest::all()? {
        let records: usize = manifest.files.iter().filter_map(|file| file.records).sum();
        let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
        let present = present(&manifest, root);
        table.add_row([
            manifest.name,
            manifest.description,
            manifest.licence,
            records.to_string(),
            format!("{:.1}", bytes as f64 / 1e6),
            format!("{present} of {} files", manifest.files.len()),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(format!(
        "{table}\nbelow {}; `prepare verify` compares the bytes. Generated data sets need no files: \
         arith-dag, and the\ntraining problems of multiplication.",
        root.display()
    ))
}

fn present(manifest: &Manifest, root: &Path) -> usize {
    let folder = root.join(&manifest.name);
    manifest
        .files
        .iter()
        .filter(|file| folder.join(&file.path).is_file())
        .count()
}

/// The manifests called `names`, all of them without names.
///
/// # Errors
///
/// When there is none of a name, listing those there are.
pub fn named(names: &[String]) -> Result<Vec<Manifest>> {
    if names.is_empty() {
        return Ok(manifest::all()?);
    }
    let found = names.iter().map(|name| manifest::find(name));
    Ok(found.collect::<Result<_, _>>()?)
}
