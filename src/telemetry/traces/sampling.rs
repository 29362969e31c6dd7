//! Which traces are collected.
//!
//! Owns: the samplers that `OTEL_TRACES_SAMPLER` names. Pure: the same trace is judged alike by every process that sees a part of it.

use crate::base::trace::TraceId;

/// How traces are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether what a caller said of its own trace decides.
    parent_based: bool,
    /// The part of the others that is chosen, from 0 to 1.
    ratio: f64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { parent_based: true, ratio: 1.0 }
    }
}

impl Sampler {
    /// The sampler of this name and argument, as the variables have them; `None` for a name that is not known here, or an argument
    /// that is no number from 0 to 1.
    #[must_use]
    pub fn named(name: &str, argument: Option<&str>) -> Option<Self> {
        let (parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match argument.map(str::trim).filter(|text| !text.is_empty()) {
                None => 1.0,
                Some(text) => text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio))?,
            },
            _ => return None,
        };
        Some(Self { parent_based, ratio })
    }

    /// Whether a trace is collected. `parent` is what a caller said of it, if it came from one.
    #[must_use]
    pub fn samples(&self, trace: TraceId, parent: Option<bool>) -> bool {
        match parent {
            Some(sampled) if self.parent_based => sampled,
            _ if self.ratio >= 1.0 => true,
            _ => {
                // The last seven bytes are the random ones, by the specification.
                let mut low = [0; 8];
                low[1..].copy_from_slice(&trace.bytes()[9..]);
                let part = u64::from_be_bytes(low) as f64 / (1_u64 << 56) as f64;
                part < self.ratio
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_are_those_the_variables_name() {
        let trace = TraceId::derived(&["t"]);
        for (name, argument, alone, in_sampled, in_unsampled) in [
            ("always_on", None, true, true, true),
            ("always_off", None, false, false, false),
            ("parentbased_always_on", None, true, true, false),
            ("parentbased_always_off", Some("1"), false, true, false),
            ("traceidratio", Some("0"), false, false, false),
            ("traceidratio", Some("1.0"), true, true, true),
            ("traceidratio", None, true, true, true),
            ("parentbased_traceidratio", Some(" 0 "), false, true, false),
        ] {
            let sampler = Sampler::named(name, argument).expect(name);
            let judged = [None, Some(true), Some(false)].map(|parent| sampler.samples(trace, parent));
            assert_eq!(judged, [alone, in_sampled, in_unsampled], "{name} {argument:?}");
        }
        for (name, argument) in [
            ("", None),
            ("jaeger_remote", None),
            ("traceidratio", Some("2")),
            ("traceidratio", Some("NaN")),
            ("traceidratio", Some("x")),
        ] {
            assert_eq!(Sampler::named(name, argument), None, "{name} {argument:?}");
        }
    }

    #[test]
    fn a_ratio_chooses_about_so_many() {
        let sampler = Sampler::named("traceidratio", Some("0.25")).expect("known");
        let chosen = (0..4000).filter(|n: &u32| sampler.samples(TraceId::derived(&[&n.to_string()]), None)).count();
        assert!((850..1150).contains(&chosen), "{chosen} of 4000");
    }
}
