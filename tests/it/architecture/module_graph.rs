//! Which file of a crate needs which: every path in the code, resolved through imports and re-exports to the file that defines it.
//!
//! A re-export (`pub use`) is no dependency of the file it is written in: it only gives a name to something defined elsewhere.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "syn adds kinds of items; those without a name or attributes are alike here"
)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proc_macro2::TokenStream;
use proc_macro2::TokenTree;
use syn::Attribute;
use syn::Item;
use syn::UseTree;
use syn::Visibility;
use syn::visit::Visit;

use crate::source_tree::Files;

/// Re-exports of re-exports that are followed before a path counts as unknown.
const ALIASES_MAX: u32 = 32;

/// The names of a path, for instance `["crate", "model", "VmId"]`; also the absolute path of a module, without `crate`.
type Segments = Vec<String>;

/// What the code of each file names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dependencies {
    /// By file: the other files of the crate that define what it names, and the names.
    pub(crate) files: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// By file: the paths that lead out of the crate.
    pub(crate) external: BTreeMap<String, BTreeSet<Segments>>,
}

#[derive(Debug, Default)]
struct Module {
    file: String,
    /// Items by name, with the file that defines them.
    items: BTreeMap<String, String>,
    /// Imports and re-exports by the name they give.
    aliases: BTreeMap<String, Segments>,
    globs: Vec<Segments>,
    /// Paths that the code of the module names, imports included and re-exports not.
    named: BTreeSet<Segments>,
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// An item in this file.
    File(String),
    /// A module itself.
    Module(Segments),
    /// Another crate, or a local name.
    External,
}

/// Reads a crate whose files lie below `root`, for instance `src`. Code under `#[cfg(test)]` is left out unless `with_tests`.
pub(crate) fn dependencies(files: &Files, root: &str, with_tests: bool) -> Dependencies {
    let mut tree = Tree {
        files,
        with_tests,
        modules: BTreeMap::new(),
        exported_macros: BTreeMap::new(),
    };
    tree.read_file(&format!("{root}/lib.rs"), root, &[]);
    let macros = std::mem::take(&mut tree.exported_macros);
    if let Some(root) = tree.modules.get_mut(&Segments::new()) {
        root.items.extend(macros);
    }
    tree.dependencies()
}

/// Groups of files of which each needs all the others, directly or not.
pub(crate) fn circles(dependencies: &Dependencies) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<String>> = dependencies
        .files
        .keys()
        .map(|file| (file, reachable_from(file, dependencies)))
        .collect();
    let mut circles = BTreeSet::new();
    for (file, others) in &reached {
        let returns =
            |other: &&String| reached.get(*other).is_some_and(|back| back.contains(*file));
        let circle: BTreeSet<String> = others.iter().filter(returns).cloned().collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reachable_from(file: &str, dependencies: &Dependencies) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![file.to_owned()];
    while let Some(file) = pending.pop() {
        for other in dependencies
            .files
            .get(&file)
            .into_iter()
            .flat_map(BTreeMap::keys)
        {
            if reached.insert(other.clone()) {
                pending.push(other.clone());
            }
        }
    }
    reached
}

struct Tree<'a> {
    files: &'a Files,
    with_tests: bool,
    /// By absolute path; the root of the crate has an empty one.
    modules: BTreeMap<Segments, Module>,
    /// Macros of `#[macro_export]`, which are named from the root of the crate.
    exported_macros: BTreeMap<String, String>,
}

impl Tree<'_> {
    /// Reads a file that is the module `path`, whose child modules lie in `folder`.
    fn read_file(&mut self, file: &str, folder: &str, path: &[String]) {
        let parsed =
            syn::parse_file(&self.files[file]).unwrap_or_else(|error| panic!("{file}: {error}"));
        self.read_items(&parsed.items, file, folder, path);
    }

    fn read_items(&mut self, items: &[Item], file: &str, folder: &str, path: &[String]) {
        let module = Module {
            file: file.to_owned(),
            ..Module::default()
        };
        self.modules.insert(path.to_vec(), module);
        for item in items {
            if !self.with_tests && is_for_tests(attributes_of(item)) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    let child_path = [path, std::slice::from_ref(&name)].concat();
                    let child_folder = format!("{folder}/{name}");
                    if let Some((_, items)) = &child.content {
                        self.read_items(items, file, &child_folder, &child_path);
                    } else {
                        self.read_child(&child_folder, &child_path);
                    }
                }
                Item::Use(import) => {
                    let is_reexport = !matches!(import.vis, Visibility::Inherited);
                    let module = self.modules.get_mut(path).unwrap();
                    read_import(&import.tree, &mut Vec::new(), is_reexport, module);
                }
                item => self.read_item(item, file, path),
            }
        }
    }

    fn read_child(&mut self, folder: &str, path: &[String]) {
        let candidates = [format!("{folder}.rs"), format!("{folder}/mod.rs")];
        let file = candidates
            .iter()
            .find(|file| self.files.contains_key(*file));
        let file = file.unwrap_or_else(|| panic!("no file for the module {path:?} in {folder}"));
        self.read_file(file, folder, path);
    }

    fn read_item(&mut self, item: &Item, file: &str, path: &[String]) {
        if let Item::Macro(definition) = item
            && let Some(name) = &definition.ident
        {
            self.exported_macros
                .insert(name.to_string(), file.to_owned());
        }
        let module = self.modules.get_mut(path).unwrap();
        if let Some(name) = name_of(item) {
            module.items.insert(name, file.to_owned());
        }
        let mut names = Names {
            with_tests: self.with_tests,
            found: &mut module.named,
        };
        names.visit_item(item);
    }

    fn dependencies(&self) -> Dependencies {
        let mut dependencies = Dependencies::default();
        for (path, module) in &self.modules {
            let needed = dependencies.files.entry(module.file.clone()).or_default();
            for segments in &module.named {
                match self.resolve(path, segments, 0) {
                    Destination::File(file) if file != module.file => {
                        let name = segments.last().cloned().unwrap_or_default();
                        needed.entry(file).or_default().insert(name);
                    }
                    Destination::File(_) | Destination::Module(_) => {}
                    Destination::External => {
                        let external = dependencies.external.entry(module.file.clone());
                        external.or_default().insert(self.expanded(path, segments));
                    }
                }
            }
        }
        dependencies
    }

    /// A path with the import of its first name put in its place: `task::spawn` after `use tokio::task` is `tokio::task::spawn`.
    fn expanded(&self, path: &[String], segments: &[String]) -> Segments {
        let alias = segments
            .first()
            .and_then(|first| self.modules[path].aliases.get(first));
        match alias {
            Some(import) => [import.as_slice(), &segments[1..]].concat(),
            None => segments.to_vec(),
        }
    }

    fn resolve(&self, from: &[String], segments: &[String], followed: u32) -> Destination {
        let mut at = from.to_vec();
        if followed > ALIASES_MAX {
            return Destination::External;
        }
        for (position, name) in segments.iter().enumerate() {
            let rest = &segments[position + 1..];
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            let module = &self.modules[&at];
            match name.as_str() {
                "self" => {}
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                _ if self.modules.contains_key(&child) => at = child,
                _ if module.items.contains_key(name) => {
                    return Destination::File(module.items[name].clone());
                }
                _ if module.aliases.contains_key(name) => {
                    let target = [module.aliases[name].as_slice(), rest].concat();
                    return self.resolve(&at, &target, followed + 1);
                }
                _ => return self.resolve_by_globs(&at, &segments[position..], position, followed),
            }
        }
        Destination::Module(at)
    }

    /// A name that its module neither defines nor imports by name: it comes from `use module::*`, or from elsewhere.
    fn resolve_by_globs(
        &self,
        at: &[String],
        segments: &[String],
        position: usize,
        followed: u32,
    ) -> Destination {
        let module = &self.modules[at];
        for glob in &module.globs {
            if let Destination::Module(other) = self.resolve(at, glob, followed + 1) {
                let found = self.resolve(&other, segments, followed + 1);
                if found != Destination::External {
                    return found;
                }
            }
        }
        // Below a module of this crate, an unknown name is one that a macro made there.
        if position > 0 {
            Destination::File(module.file.clone())
        } else {
            Destination::External
        }
    }
}

fn read_import(tree: &UseTree, prefix: &mut Segments, is_reexport: bool, module: &mut Module) {
    let mut add = |alias: String, target: Segments| {
        if !is_reexport {
            module.named.insert(target.clone());
        }
        module.aliases.insert(alias, target);
    };
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            read_import(&path.tree, prefix, is_reexport, module);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            add(prefix.last().cloned().unwrap_or_default(), prefix.clone());
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            add(name.clone(), [prefix.as_slice(), &[name]].concat());
        }
        UseTree::Rename(rename) => {
            let target = [prefix.as_slice(), &[rename.ident.to_string()]].concat();
            add(rename.rename.to_string(), target);
        }
        UseTree::Glob(_) => module.globs.push(prefix.clone()),
        UseTree::Group(group) => {
            for tree in &group.items {
                read_import(tree, prefix, is_reexport, module);
            }
        }
    }
}

/// Collects every path of an item, those in the arguments of macros too.
struct Names<'a> {
    with_tests: bool,
    found: &'a mut BTreeSet<Segments>,
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.found.insert(segments.collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        collect_paths(invocation.tokens.clone(), self.found);
        syn::visit::visit_macro(self, invocation);
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        // An import within a function: its names count, the alias is not needed to find the file.
        let mut module = Module::default();
        read_import(&import.tree, &mut Vec::new(), false, &mut module);
        self.found.append(&mut module.named);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if self.with_tests || !is_for_tests(&function.attrs) {
            syn::visit::visit_impl_item_fn(self, function);
        }
    }
}

fn collect_paths(tokens: TokenStream, found: &mut BTreeSet<Segments>) {
    let mut segments = Segments::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => {
                if colons != 2 {
                    found.insert(std::mem::take(&mut segments));
                }
                segments.push(name.to_string());
                colons = 0;
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                collect_paths(group.stream(), found);
                colons = 0;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => colons = 0,
        }
    }
    found.insert(segments);
    found.remove(&Segments::new());
}

/// Whether an item is compiled for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        let condition = attribute.meta.require_list().ok();
        is_cfg && condition.is_some_and(|list| list.tokens.to_string() == "test")
    })
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}
