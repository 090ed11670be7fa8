//! How a machine is divided among replicas: CPU cores by NUMA node, Neuron cores by the degree of the artifact.

use std::collections::BTreeSet;
use std::fs;

use super::threads::cpu_list;
use crate::args::UsageError;

/// What one replica computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// CPUs by their numbers, and the NUMA node of the first.
    Cpus {
        /// CPUs.
        cpus: Vec<usize>,
        /// Node.
        node: usize,
    },
    /// Neuron cores from the first one on.
    NeuronCores {
        /// Number of the first.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Core {
    node: usize,
    cpus: Vec<usize>,
}

impl Share {
    /// CPUs or cores as `0-3,8`.
    pub fn list(&self) -> String {
        match self {
            Share::Cpus { cpus, .. } => cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
            Share::NeuronCores { first, count: 1 } => first.to_string(),
            Share::NeuronCores { first, count } => format!("{first}-{}", first + count - 1),
        }
    }
}

/// The physical cores that this process may use, node by node.
pub fn cores() -> Vec<Core> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(cpu_list);
    let Some(allowed) = allowed.filter(|cpus| !cpus.is_empty()) else { return vec![Core { node: 0, cpus: vec![] }] };
    let read = |path: String| fs::read_to_string(path).ok().and_then(|text| cpu_list(&text));
    let nodes = fs::read_to_string("/sys/devices/system/node/online").ok().and_then(|text| cpu_list(&text));
    let of_node = |node: &usize| Some((*node, read(format!("/sys/devices/system/node/node{node}/cpulist"))?));
    let nodes: Vec<(usize, Vec<usize>)> = nodes.unwrap_or_default().iter().filter_map(of_node).collect();
    let core = |cpu: &usize| {
        let siblings = read(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
        let siblings = siblings.unwrap_or_else(|| vec![*cpu]);
        let node = nodes.iter().find(|(_, cpus)| cpus.contains(cpu)).map_or(0, |(node, _)| *node);
        Core { node, cpus: siblings.into_iter().filter(|cpu| allowed.contains(cpu)).collect() }
    };
    allowed.iter().map(core).collect::<BTreeSet<Core>>().into_iter().collect()
}

/// CPUs for `count` replicas, or for one per node. More replicas than cores share them.
pub fn of_cpus(cores: &[Core], count: Option<usize>) -> Vec<Share> {
    let nodes: BTreeSet<usize> = cores.iter().map(|core| core.node).collect();
    let count = count.unwrap_or(nodes.len()).max(1);
    let share = |i: usize| {
        let (first, next) = (i * cores.len() / count, (i + 1) * cores.len() / count);
        let own = &cores[first..next.max(first + 1).min(cores.len())];
        Share::Cpus {
            cpus: own.iter().flat_map(|core| core.cpus.iter().copied()).collect(),
            node: own.first().map_or(0, |core| core.node),
        }
    };
    (0..count).map(share).collect()
}

/// Neuron cores for `count` replicas of `tp` cores, or for as many as there are cores for.
pub fn of_neuron_cores(visible: &[u32], tp: usize, count: Option<usize>) -> Result<Vec<Share>, UsageError> {
    let most = visible.len() / tp.max(1);
    let count = count.unwrap_or(most);
    if count > most || most == 0 {
        return Err(UsageError(format!(
            "--replicas: {} replicas of {tp} cores need {}, there are {}",
            count.max(1),
            count.max(1) * tp,
            visible.len()
        )));
    }
    let share = |own: &[u32]| {
        let (Some(first), Ok(count)) = (own.first(), u32::try_from(own.len())) else { return Err(split()) };
        // libnrt takes cores in a row only.
        if own.windows(2).any(|pair| pair[1] != pair[0] + 1) {
            return Err(split());
        }
        Ok(Share::NeuronCores { first: *first, count })
    };
    visible.chunks_exact(tp.max(1)).take(count).map(share).collect()
}

fn split() -> UsageError {
    UsageError("NEURON_RT_VISIBLE_CORES: the cores of a replica must be numbers in a row".into())
}

/// The numbers of Neuron cores that `NEURON_RT_VISIBLE_CORES` or `NEURON_RT_NUM_CORES` leave, of `total`.
pub fn visible_cores(visible: Option<&str>, number: Option<&str>, total: usize) -> Result<Vec<u32>, UsageError> {
    let bad = |name: &str, value: &str| UsageError(format!("{name}={value}: not core numbers such as 0-3"));
    if let Some(value) = visible.map(str::trim).filter(|value| !value.is_empty()) {
        let cores = cpu_list(value).ok_or_else(|| bad("NEURON_RT_VISIBLE_CORES", value))?;
        return cores
            .into_iter()
            .map(|core| u32::try_from(core).map_err(|_| bad("NEURON_RT_VISIBLE_CORES", value)))
            .collect();
    }
    let number = match number.map(str::trim).filter(|value| !value.is_empty() && *value != "0") {
        Some(value) => value.parse().map_err(|_| bad("NEURON_RT_NUM_CORES", value))?,
        None => total,
    };
    Ok((0..u32::try_from(number.min(total)).unwrap_or(u32::MAX)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(nodes: usize, cores: usize) -> Vec<Core> {
        let core = |i: usize| Core { node: i / cores, cpus: vec![i, i + nodes * cores] };
        (0..nodes * cores).map(core).collect()
    }

    #[test]
    fn auto_gives_each_node_a_replica_and_a_number_cuts_cores_in_a_row() {
        let lists = |count| of_cpus(&machine(2, 2), count).iter().map(Share::list).collect::<Vec<_>>();
        assert_eq!(lists(None), ["0,4,1,5", "2,6,3,7"]);
        assert_eq!(lists(Some(4)), ["0,4", "1,5", "2,6", "3,7"]);
        assert_eq!(lists(Some(3)), ["0,4", "1,5", "2,6,3,7"]);
        let shared = of_cpus(&machine(1, 2), Some(4));
        assert_eq!(shared.iter().map(Share::list).collect::<Vec<_>>(), ["0,2", "0,2", "1,3", "1,3"]);
        assert!(!of_cpus(&cores(), None).is_empty());
    }

    #[test]
    fn neuron_cores_are_cut_by_the_degree() {
        let lists = |visible: &str, tp, count| {
            let visible = visible_cores(Some(visible), None, 24).unwrap();
            of_neuron_cores(&visible, tp, count).map(|shares| shares.iter().map(Share::list).collect::<Vec<_>>())
        };
        assert_eq!(lists("0-7", 2, None).unwrap(), ["0-1", "2-3", "4-5", "6-7"]);
        assert_eq!(lists("4-7", 1, Some(2)).unwrap(), ["4", "5"]);
        assert_eq!(lists("0,2", 1, None).unwrap(), ["0", "2"]);
        assert!(lists("0,2", 2, None).is_err() && lists("0-1", 4, None).is_err() && lists("0-3", 2, Some(3)).is_err());
    }

    #[test]
    fn variables_say_which_neuron_cores_there_are() {
        let count = |visible, number| visible_cores(visible, number, 8).map(|cores| cores.len());
        assert_eq!(count(None, None).unwrap(), 8);
        assert_eq!(count(None, Some("2")).unwrap(), 2);
        assert_eq!(count(None, Some("0")).unwrap(), 8);
        assert_eq!(count(Some("3"), Some("2")).unwrap(), 1);
        assert!(count(Some("two"), None).is_err() && count(None, Some("-1")).is_err());
    }
}
