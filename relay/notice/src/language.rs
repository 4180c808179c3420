//! The languages that there are, and how a tag names one.

use std::fmt;

/// A language that notices are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// English
    English,
    /// French
    French,
    /// German
    German,
    /// Italian
    Italian,
    /// Portuguese as written in Brazil
    BrazilianPortuguese,
    /// Swedish
    Swedish,
}

/// A tag that names no language that notices are written in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "notices are not written in {tag:?}; there are {}",
    Language::ALL.map(|language| language.tag()).join(", ")
)]
pub struct UnknownLanguage {
    /// What was asked for.
    pub tag: String,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::English,
        Self::French,
        Self::German,
        Self::Italian,
        Self::BrazilianPortuguese,
        Self::Swedish,
    ];

    /// Its BCP 47 tag.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::French => "fr",
            Self::German => "de",
            Self::Italian => "it",
            Self::BrazilianPortuguese => "pt-BR",
            Self::Swedish => "sv",
        }
    }

    /// The language of a BCP 47 tag. Regions fall back to what there is: `de-AT` is German, and any
    /// Portuguese is Brazilian, which a reader from Portugal understands.
    pub fn parse(tag: &str) -> Result<Self, UnknownLanguage> {
        let unknown = || UnknownLanguage { tag: tag.to_owned() };
        let mut subtags = tag.split('-');
        let primary = subtags.next().unwrap_or_default();
        // RFC 5646 2.1: subtags are of one to eight letters and digits.
        let sound = |subtag: &str| {
            (1..=8).contains(&subtag.len())
                && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !subtags.all(sound) {
            return Err(unknown());
        }
        let of_primary = |language: &Self| {
            let own = language.tag();
            own.split('-').next().unwrap_or(own).eq_ignore_ascii_case(primary)
        };
        Self::ALL.into_iter().find(of_primary).ok_or_else(unknown)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tag())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_with_regions_and_any_case_name_a_language() {
        for (tag, language) in [
            ("en", Language::English),
            ("en-GB", Language::English),
            ("de-AT", Language::German),
            ("DE-ch-1996", Language::German),
            ("fr-CA", Language::French),
            ("it", Language::Italian),
            ("pt", Language::BrazilianPortuguese),
            ("pt-br", Language::BrazilianPortuguese),
            ("pt-PT", Language::BrazilianPortuguese),
            ("sv-FI", Language::Swedish),
        ] {
            assert_eq!(Language::parse(tag), Ok(language), "{tag}");
        }
        for language in Language::ALL {
            assert_eq!(Language::parse(language.tag()), Ok(language));
        }
    }

    #[test]
    fn an_unknown_tag_is_told_what_there_is() {
        for tag in ["", "ja", "eng", "de-", "de--AT", "de_AT", "de-longerthan8", "de AT", "-de"] {
            let error = Language::parse(tag).expect_err(tag).to_string();
            assert_eq!(
                error,
                format!("notices are not written in {tag:?}; there are en, fr, de, it, pt-BR, sv")
            );
        }
    }
}
