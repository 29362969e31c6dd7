//! The public surface of the library as `cargo doc` shows it: each path and, indented below it, what it declares, its methods and
//! the traits it implements. Run by `.ci/public-paths`, with the folder of the crate's documentation.
//!
//! Read from rustdoc's pages, because its JSON needs a nightly compiler. Everything in a page that is not read here may change.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

/// Pages with fewer declarations than this are not read any more as they were.
const LEAST: usize = 50;

fn main() -> ExitCode {
    let docs = env::args().nth(1).unwrap_or_default();
    match surface(Path::new(&docs)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{docs}: {why}: see .ci/public_paths.rs");
            ExitCode::FAILURE
        }
    }
}

fn surface(docs: &Path) -> Result<String, String> {
    let read = |name: &str| fs::read_to_string(docs.join(name)).map_err(|error| format!("{name}: {error}"));
    let index = read("all.html")?;
    let mut items = BTreeMap::new();
    for link in index.split("<li><a href=\"").skip(1) {
        let (page, rest) = link.split_once("\">").ok_or("a link without an end")?;
        let name = rest.split("</a>").next().unwrap_or_default();
        let file = page.rsplit('/').next().unwrap_or_default();
        let Some((kind, _)) = file.split_once('.').filter(|_| !page.contains("://") && file.ends_with(".html")) else {
            continue;
        };
        items.insert(
            (name.to_owned(), kind.to_owned()),
            said_by(&read(page)?).ok_or(format!("{page} declares nothing"))?,
        );
    }
    if items.len() < LEAST {
        return Err(format!("{} items were found", items.len()));
    }
    let methods =
        items.values().flatten().filter(|said| said.starts_with("pub fn ") || said.starts_with("pub async fn "));
    if methods.count() < LEAST {
        return Err("the methods were not found".to_owned());
    }
    let mut text = String::new();
    for ((name, kind), said) in items {
        text += &format!("{kind} phone_opus::{name}\n");
        for line in said.iter().flat_map(|said| said.lines()) {
            text += &format!("    {line}\n");
        }
    }
    Ok(text)
}

/// What a page says of its item: the declaration, then methods, then traits, each in an order of its own.
fn said_by(page: &str) -> Option<Vec<String>> {
    let declared = page.split_once("<pre class=\"rust item-decl\">")?.1.split_once("</pre>")?.0;
    let declared = plain(declared);
    let lines =
        declared.lines().map(str::trim_end).filter(|line| !line.trim_start().starts_with("// ") && !line.is_empty());
    let mut said = vec![lines.collect::<Vec<_>>().join("\n")];
    let chapter = |id: &str| {
        let begun = page.split_once(&format!("<div id=\"{id}\">"))?.1;
        Some(begun.split("<h2 id=\"").next().unwrap_or(begun))
    };
    let heads = |text: &str, tag: &str| -> Vec<String> {
        let (begins, ends) = (format!("<{tag} class=\"code-header\">"), format!("</{tag}>"));
        let heads = text.split(&begins).skip(1).filter_map(|rest| rest.split(&ends).next());
        heads.map(|head| one_line(&plain(head))).collect()
    };
    let mut methods = heads(chapter("implementations-list").unwrap_or_default(), "h4");
    methods.sort();
    said.extend(methods);
    let mut traits = heads(chapter("trait-implementations-list").unwrap_or_default(), "h3");
    // That something is not `Send` is worth a line; that it is is the rule.
    let lost = heads(chapter("synthetic-implementations-list").unwrap_or_default(), "h3");
    traits.extend(lost.into_iter().filter(|head| head.contains("!Send ") || head.contains("!Sync ")));
    traits.sort();
    traits.dedup();
    // Most are the plain trait of the plain type, and share a line.
    let name = |head: &str| {
        let (name, _) =
            head.strip_prefix("impl ")?.split_once(" for ").filter(|(name, _)| !name.contains(['!', ' ']))?;
        Some(name.to_owned())
    };
    let shared: Vec<_> =
        traits.iter().filter_map(|head| name(head)).filter(|name| name != "StructuralPartialEq").collect();
    if !shared.is_empty() {
        said.push(format!("implements {}", shared.join(", ")));
    }
    said.extend(traits.into_iter().filter(|head| name(head).is_none()));
    Some(said)
}

/// Text without its tags.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, after)) = rest.split_once('<') {
        text += before;
        let (tag, behind) = after.split_once('>').unwrap_or((after, ""));
        rest = match tag.split(' ').next() {
            // "Show 60 variants".
            Some("summary") => behind.split_once("</summary>").map_or("", |(_, behind)| behind),
            _ => behind,
        };
        match tag {
            "/div" => text.push('\n'),
            // An attribute of the item has a box of its own at the margin.
            "div class=\"code-attribute\"" => {}
            _ if tag.starts_with("div") => text.push(' '),
            _ => {}
        }
    }
    text += rest;
    let signs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    signs.into_iter().fold(text, |text, (sign, means)| text.replace(sign, means))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(").replace(", )", ")")
}
