//! What every XML document of libvirt has in common: parsing within bounds, and escaping.

use roxmltree::Document;
use roxmltree::Node;
use roxmltree::ParsingOptions;

/// Most nodes of one document: a VM with hundreds of devices has some thousand.
const NODES_MAX: u32 = 200_000;

/// A document is not what libvirt writes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XmlError {
    /// It is not XML.
    #[error("it is not XML")]
    Syntax(#[from] roxmltree::Error),
    /// Something that is always there is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A text cannot be written in XML at all.
    #[error("it holds a character that XML cannot hold")]
    Character,
}

pub(super) fn parse(xml: &str) -> Result<Document<'_>, XmlError> {
    let options = ParsingOptions {
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    Ok(Document::parse_with_options(xml, options)?)
}

pub(super) fn root_named<'a, 'i>(
    document: &'a Document<'i>,
    name: &'static str,
) -> Result<Node<'a, 'i>, XmlError> {
    let root = document.root_element();
    if root.has_tag_name(name) {
        Ok(root)
    } else {
        Err(XmlError::Missing(name))
    }
}

pub(super) fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    of.children().find(|child| child.has_tag_name(name))
}

/// The text of a child, `None` when there is no such child or it is empty.
pub(super) fn text(of: Node<'_, '_>, name: &str) -> Option<String> {
    let all: String = child(of, name)?
        .children()
        .filter_map(|child| child.text().filter(|_| child.is_text()))
        .collect();
    (!all.is_empty()).then_some(all)
}

pub(super) fn escaped(text: &str) -> Result<String, XmlError> {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\r' => out.push_str("&#13;"),
            '\n' | '\t' => out.push(character),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return Err(XmlError::Character),
            other => out.push(other),
        }
    }
    Ok(out)
}
