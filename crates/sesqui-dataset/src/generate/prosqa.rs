//! Questions over random graphs of concepts, in the form of ProsQA (Hao et al., "Coconut",
//! arXiv 2412.06769).
//!
//! A question lists the edges of a directed acyclic graph in random order and asks which of two
//! concepts a person is; only one can be reached. The training file of the paper is not among the
//! published pieces that can be had, so this is a procedure of our own, fitted to counts over the
//! published validation and test files: nodes, edges, persons, path lengths. It is not the
//! procedure of the paper.

use std::collections::BTreeSet;

use super::random::Random;
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Criticality, LabelSource, Problem, Step};
use crate::read::prosqa::Graph;
use crate::split::Part;

/// The names that graphs are labelled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Persons, at least [`MOST_PERSONS`].
    pub persons: Vec<String>,
    /// Concepts, at least [`MOST_CONCEPTS`].
    pub concepts: Vec<String>,
}

/// Most persons in a graph.
pub const MOST_PERSONS: usize = 6;
/// Most concepts in a graph.
pub const MOST_CONCEPTS: usize = 26;

impl Names {
    /// Names of our own: common first names, and 40 concepts made of a syllable and `-pus`.
    pub fn invented() -> Self {
        let persons = [
            "Ada", "Ben", "Clara", "Dan", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas",
            "Lena", "Mia", "Noah", "Olga", "Paul", "Rosa", "Theo", "Vera",
        ];
        let onsets = ["b", "dr", "f", "gl", "k", "m", "pl", "sn", "tr", "v"];
        let rimes = ["al", "em", "in", "ud"];
        let concepts = onsets
            .iter()
            .flat_map(|onset| rimes.iter().map(move |rime| format!("{onset}{rime}pus")))
            .collect();
        Self {
            persons: persons.map(str::to_owned).to_vec(),
            concepts,
        }
    }

    /// The names that occur in some graphs: what begins with a capital letter is a person.
    pub fn of_graphs<'a>(graphs: impl IntoIterator<Item = &'a Graph>) -> Self {
        let all: BTreeSet<&String> = graphs
            .into_iter()
            .flat_map(|graph| &graph.symbols)
            .collect();
        let (persons, concepts) = all
            .into_iter()
            .cloned()
            .partition(|name| name.starts_with(char::is_uppercase));
        Self { persons, concepts }
    }
}

/// `count` problems with distinct questions, ids `prosqa/generated-<split>/<row>`, with their
/// graphs. The seed and the split name the random stream.
///
/// The steps are the sentences along a shortest path; the first, about the person, is labelled
/// independent, the others critical. The answer is the sentence `<person> is a <concept>`.
///
/// # Errors
/// [`DatasetError::Config`] when there are too few names.
pub fn generate(
    names: &Names,
    part: Part,
    count: usize,
    seed: u64,
) -> Result<Vec<(Problem, Graph)>, DatasetError> {
    if names.persons.len() < MOST_PERSONS || names.concepts.len() < MOST_CONCEPTS {
        return Err(DatasetError::Config(format!(
            "data set prosqa: {} persons and {} concepts are too few names, {MOST_PERSONS} and \
             {MOST_CONCEPTS} are needed",
            names.persons.len(),
            names.concepts.len(),
        )));
    }
    let stream = format!("prosqa/generated-{}", part.name());
    let mut random = Random::stream(seed, &stream, 0);
    let mut seen = BTreeSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let sketch = Sketch::draw(&mut random);
        let (mut problem, graph) = sketch.write(names, &mut random);
        if seen.insert(problem.question.clone()) {
            problem.id = format!("{stream}/{}", rows.len());
            rows.push((problem, graph));
        }
    }
    Ok(rows)
}

// The weights below are counts over the 800 published validation and test questions.
/// Nodes, persons included, from 17 on.
const NODES: [u32; 12] = [6, 7, 31, 53, 97, 142, 155, 149, 98, 47, 12, 2];
const FEWEST_NODES: usize = 17;
/// Persons, from 2 on.
const PERSONS: [u32; 5] = [461, 253, 68, 16, 2];
/// Edges from the person to the right option, from 3 on.
const PATH_LENGTHS: [u32; 4] = [326, 350, 105, 19];
/// Edges into a concept, from 1 on; shifted up from the counts, as the first nodes of a graph have
/// few others to be drawn from.
const EDGES_INTO: [u32; 6] = [7600, 5100, 2450, 850, 230, 45];
/// Of the concepts that are neither on the way to an option nor an option.
const REACHABLE_PERCENT: u64 = 56;

/// A graph in the making: nodes in an order in which every edge points forward.
struct Sketch {
    nodes: Vec<Node>,
    edges: Vec<[usize; 2]>,
    path: Vec<usize>,
    distractor: usize,
}

struct Node {
    person: bool,
    /// Shortest distance from the person asked about; `None` where that person cannot be.
    depth: Option<usize>,
    /// The two options have nothing below them.
    leaf: bool,
}

/// What the next node of a graph is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Person,
    /// The next concept on the way to the right option.
    OnPath,
    /// A concept that the person asked about can be.
    Reachable,
    /// One that this person cannot be.
    Unreachable,
    Distractor,
}

impl Sketch {
    fn draw(random: &mut Random) -> Self {
        let length = 3 + random.weighted(&PATH_LENGTHS).unwrap_or(0);
        let persons = 2 + random.weighted(&PERSONS).unwrap_or(0);
        let nodes = FEWEST_NODES + random.weighted(&NODES).unwrap_or(0);
        let mut plan = vec![Plan::OnPath; length];
        plan.push(Plan::Distractor);
        plan.extend(vec![Plan::Person; persons - 2]);
        while plan.len() + 2 < nodes {
            let reachable = random.chance(REACHABLE_PERCENT, 100);
            plan.push(if reachable {
                Plan::Reachable
            } else {
                Plan::Unreachable
            });
        }
        random.shuffle(&mut plan);

        let asked = random.index(2);
        let person = |depth| Node {
            person: true,
            depth,
            leaf: false,
        };
        let mut sketch = Self {
            nodes: (0..2)
                .map(|index| person((index == asked).then_some(0)))
                .collect(),
            edges: Vec::new(),
            path: vec![asked],
            distractor: 0,
        };
        // Only in one graph of seven something lies deeper than the right option.
        let deepest = if random.chance(1, 7) {
            usize::MAX
        } else {
            length
        };
        for plan in plan {
            if plan == Plan::Person {
                sketch.nodes.push(person(None));
            } else {
                sketch.add_concept(plan, length, deepest, random);
            }
        }
        sketch.employ_persons(random);
        sketch
    }

    /// Adds a concept below nodes that are there already.
    fn add_concept(&mut self, plan: Plan, length: usize, deepest: usize, random: &mut Random) {
        let index = self.nodes.len();
        let wanted = 1 + random.weighted(&EDGES_INTO).unwrap_or(0);
        let last_on_path = self.path.last().copied().unwrap_or(0);
        let on_path_depth = self.path.len();
        // A first parent that makes the concept what it is to be, then any that leave it so.
        let fits = |node: &Node, first: bool| match (plan, node.depth) {
            _ if node.leaf => false,
            (Plan::OnPath, Some(depth)) => depth + 1 >= on_path_depth,
            (Plan::Reachable, Some(depth)) => !first || depth < deepest,
            (Plan::OnPath | Plan::Reachable, None) => !first,
            (_, depth) => depth.is_none(),
        };
        let mut parents = Vec::new();
        if plan == Plan::OnPath {
            parents.push(last_on_path);
        }
        while parents.len() < wanted {
            let first = parents.is_empty();
            let weight = |node: usize| match &self.nodes[node] {
                state if parents.contains(&node) || !fits(state, first) => 0,
                state if state.person => 3,
                _ if self.edges.iter().all(|&[from, _]| from != node) => 14,
                _ => 9,
            };
            let weights: Vec<u32> = (0..index).map(weight).collect();
            let Some(parent) = random.weighted(&weights) else {
                break;
            };
            parents.push(parent);
        }

        let depth = parents
            .iter()
            .filter_map(|&parent| self.nodes[parent].depth)
            .min();
        let target = plan == Plan::OnPath && self.path.len() == length;
        self.edges
            .extend(parents.into_iter().map(|parent| [parent, index]));
        self.nodes.push(Node {
            person: false,
            depth: depth.map(|depth| depth + 1),
            leaf: target || plan == Plan::Distractor,
        });
        match plan {
            Plan::OnPath => self.path.push(index),
            Plan::Distractor => self.distractor = index,
            _ => (),
        }
    }

    /// Gives every person who is nothing yet something to be; another person than the one asked
    /// about may be anything.
    fn employ_persons(&mut self, random: &mut Random) {
        for person in 0..self.nodes.len() {
            let idle = self.edges.iter().all(|&[from, _]| from != person);
            if self.nodes[person].person && idle {
                let concepts: Vec<usize> = (0..self.nodes.len())
                    .filter(|&node| !self.nodes[node].person)
                    .collect();
                if let Some(&concept) = random.pick(&concepts) {
                    self.edges.push([person, concept]);
                }
            }
        }
    }

    fn write(&self, names: &Names, random: &mut Random) -> (Problem, Graph) {
        let (mut persons, mut concepts) = (names.persons.clone(), names.concepts.clone());
        random.shuffle(&mut persons);
        random.shuffle(&mut concepts);
        let (mut persons, mut concepts) = (persons.into_iter(), concepts.into_iter());
        let symbols: Vec<String> = self
            .nodes
            .iter()
            .filter_map(|node| {
                if node.person {
                    persons.next()
                } else {
                    concepts.next()
                }
            })
            .collect();
        let sentence = |[from, to]: [usize; 2]| {
            let every = if self.nodes[from].person {
                ""
            } else {
                "Every "
            };
            format!("{every}{} is a {}.", symbols[from], symbols[to])
        };

        let mut order = self.edges.clone();
        random.shuffle(&mut order);
        let (root, target) = (self.path[0], self.path[self.path.len() - 1]);
        let mut options = [target, self.distractor];
        random.shuffle(&mut options);
        let mut sentences: Vec<String> = order.iter().map(|&edge| sentence(edge)).collect();
        let [first, second] = options.map(|option| &symbols[option]);
        sentences.push(format!("Is {} a {first} or {second}?", symbols[root]));
        let steps = self
            .path
            .windows(2)
            .enumerate()
            .map(|(index, pair)| Step {
                text: sentence([pair[0], pair[1]]),
                criticality: Some(Criticality {
                    critical: index > 0,
                    source: LabelSource::GroundTruth,
                }),
            })
            .collect();
        let problem = Problem {
            id: String::new(),
            question: sentences.join(" "),
            steps,
            answer: format!("{} is a {}", symbols[root], symbols[target]),
            answer_kind: AnswerKind::Choice,
        };
        let graph = Graph {
            symbols,
            edges: self.edges.clone(),
            root,
            target,
            distractor: self.distractor,
        };
        (problem, graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{BadRows, prosqa};

    /// Means of: nodes, edges, path length, persons, concepts reachable from the root, concepts
    /// without an edge out of them, edges out of a person, share of graphs with the right option
    /// named first.
    fn means(rows: &[(Problem, Graph)]) -> [f64; 8] {
        let mut sums = [0.0; 8];
        for (problem, graph) in rows {
            let count = graph.symbols.len();
            let is_person = |&node: &usize| graph.symbols[node].starts_with(char::is_uppercase);
            let out = |node: usize| graph.edges.iter().filter(|edge| edge[0] == node).count();
            let persons: Vec<usize> = (0..count).filter(is_person).collect();
            let employed: usize = persons.iter().map(|&person| out(person)).sum();
            let first = format!("a {} or", graph.symbols[graph.target]);
            let values = [
                count,
                graph.edges.len(),
                problem.steps.len(),
                persons.len(),
                (0..count)
                    .filter(|&node| graph.distance(node) > Some(0))
                    .count(),
                (0..count).filter(|&node| out(node) == 0).count(),
            ];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value as f64;
            }
            sums[6] += employed as f64 / persons.len() as f64;
            sums[7] += f64::from(u8::from(problem.question.contains(&first)));
        }
        sums.map(|sum| sum / rows.len() as f64)
    }

    /// From the published card: 800 questions.
    const PUBLISHED: [f64; 8] = [22.8, 36.0, 3.77, 2.56, 12.4, 7.37, 2.78, 0.505];
    const TOLERANCE: [f64; 8] = [0.3, 1.5, 0.06, 0.1, 1.0, 0.7, 0.4, 0.03];

    fn assert_close(means: [f64; 8], tolerance: [f64; 8]) {
        for index in 0..8 {
            let difference = (means[index] - PUBLISHED[index]).abs();
            assert!(
                difference <= tolerance[index],
                "{index}: {means:?}, not {PUBLISHED:?}"
            );
        }
    }

    #[test]
    fn statistics_are_those_of_the_published_questions() {
        let rows = generate(&Names::invented(), Part::Train, 4_000, 1).unwrap();
        assert_close(means(&rows), TOLERANCE);
        let shares = [3, 4, 5, 6].map(|length| {
            rows.iter()
                .filter(|(problem, _)| problem.steps.len() == length)
                .count()
        });
        for (count, published) in shares.into_iter().zip([326, 350, 105, 19]) {
            assert!(count.abs_diff(5 * published) < 150, "{shares:?}");
        }
        assert_eq!(
            rows,
            generate(&Names::invented(), Part::Train, 4_000, 1).unwrap()
        );
    }

    #[test]
    fn graph_text_and_answer_agree() {
        let rows = generate(&Names::invented(), Part::Test, 1_000, 3).unwrap();
        for (problem, graph) in &rows {
            let name = |node: usize| graph.symbols[node].as_str();
            assert_eq!(
                graph.distance(graph.target),
                Some(problem.steps.len()),
                "{problem:?}"
            );
            assert_eq!(graph.distance(graph.distractor), None, "{problem:?}");
            assert_eq!(
                problem.answer,
                format!("{} is a {}", name(graph.root), name(graph.target))
            );
            let distinct: BTreeSet<&String> = graph.symbols.iter().collect();
            assert_eq!(distinct.len(), graph.symbols.len());
            let distinct: BTreeSet<[usize; 2]> = graph.edges.iter().copied().collect();
            assert_eq!(distinct.len(), graph.edges.len());

            // The text, read back, is the graph; the steps are sentences of it that chain.
            let (context, question) = problem.question.rsplit_once(". ").unwrap();
            let sentences: BTreeSet<String> = context
                .split(". ")
                .map(|sentence| format!("{sentence}."))
                .collect();
            let mut here = name(graph.root).to_owned();
            for (index, step) in problem.steps.iter().enumerate() {
                assert!(sentences.contains(&step.text), "{problem:?}");
                assert_eq!(step.criticality.unwrap().critical, index > 0);
                let (from, to) = step.text.split_once(" is a ").unwrap();
                assert_eq!(from.trim_start_matches("Every "), here);
                here = to.trim_end_matches('.').to_owned();
            }
            assert_eq!(here, name(graph.target));
            for &[from, to] in &graph.edges {
                let text = format!("{} is a {}.", name(from), name(to));
                assert!(sentences.contains(&text) || sentences.contains(&format!("Every {text}")));
            }
            assert_eq!(sentences.len(), graph.edges.len());
            assert!(question.starts_with(&format!("Is {} a ", name(graph.root))));
        }
    }

    #[test]
    fn published_statistics_hold_and_names_can_be_taken_over() {
        let Some(root) = crate::generate::data_root() else {
            return;
        };
        let read = |file| {
            let path = root.join("prosqa").join(file);
            prosqa::read_with_graphs(&path, BadRows::Fail).unwrap().rows
        };
        let valid = read("prosqa_valid.json");
        let all: Vec<_> = valid
            .iter()
            .cloned()
            .chain(read("prosqa_test.json"))
            .collect();
        assert_close(
            means(&all),
            [0.05, 0.05, 0.01, 0.01, 0.05, 0.05, 0.05, 0.001],
        );
        let names = Names::of_graphs(valid.iter().map(|(_, graph)| graph));
        assert_eq!((names.persons.len(), names.concepts.len()), (17, 38));
        assert_close(
            means(&generate(&names, Part::Train, 2_000, 1).unwrap()),
            TOLERANCE,
        );
    }

    #[test]
    fn too_few_names_are_an_error() {
        let mut names = Names::invented();
        assert!(names.concepts.iter().all(|name| name.ends_with("pus")));
        names.concepts.truncate(MOST_CONCEPTS - 1);
        assert!(generate(&names, Part::Train, 1, 1).is_err());
    }
}
