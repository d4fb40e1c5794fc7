//! Where names are looked up, and which objects can never be unloaded.

use super::ProcessView;
use suture_elf::ObjectFile;

/// Marks the objects that were loaded with the program.
///
/// They are a prefix of the link map: main, preloads, then the needed objects breadth-first. Behind
/// them stand objects that `dlopen` brought, some of which may have joined no scope at all. The
/// prefix ends at the last object that something in the prefix needs.
pub(super) fn mark_startup(view: &mut ProcessView<'_>) {
    let first = view.namespaces.first().copied().unwrap_or(0);
    let mut end = usize::from(first > 0);
    let mut at = 0;
    while at < end {
        for needed in view.needed(at) {
            end = end.max(needed + 1);
        }
        at += 1;
    }
    view.objects[..end].iter_mut().for_each(|o| o.startup = true);
}

impl ProcessView<'_> {
    /// Objects an object names in `DT_NEEDED`, as far as its namespace has them.
    #[must_use]
    pub fn needed(&self, object: usize) -> Vec<usize> {
        let names = self.objects[object].file.needed();
        names.iter().filter_map(|name| self.in_namespace(self.objects[object].namespace, name)).collect()
    }

    fn in_namespace(&self, namespace: usize, name: &str) -> Option<usize> {
        let inside = |i: &usize| self.objects[*i].namespace == namespace;
        (0..self.objects.len()).filter(inside).find(|&i| self.objects[i].is_named(name))
    }

    /// The order in which names are looked up for code that belongs to `object`: the namespace's
    /// global scope, then the object and what it needs, breadth-first.
    #[must_use]
    pub fn scope_of(&self, object: usize) -> Vec<usize> {
        let namespace = self.objects[object].namespace;
        let global = |i: &usize| {
            let o = &self.objects[*i];
            o.namespace == namespace && (o.startup || namespace > 0) && !o.vdso
        };
        let mut scope: Vec<usize> = if namespace == 0 {
            (0..self.objects.len()).filter(global).collect()
        } else {
            // The first object a dlmopen namespace loaded is the one it was made for; it and what it
            // needs are the namespace's global scope.
            (0..self.objects.len()).find(global).map(|first| self.closure(first)).unwrap_or_default()
        };
        for i in self.closure(object) {
            if !scope.contains(&i) {
                scope.push(i);
            }
        }
        scope
    }

    /// An object and everything it needs, breadth-first.
    #[must_use]
    pub fn closure(&self, object: usize) -> Vec<usize> {
        let mut closure = vec![object];
        let mut at = 0;
        while at < closure.len() {
            for needed in self.needed(closure[at]) {
                if !closure.contains(&needed) {
                    closure.push(needed);
                }
            }
            at += 1;
        }
        closure
    }

    /// Names a patch needs that are not loaded.
    #[must_use]
    pub fn not_loaded(&self, patch: &ObjectFile, namespace: usize) -> Vec<String> {
        let needed = patch.needed().into_iter();
        needed.filter(|name| self.in_namespace(namespace, name).is_none()).map(str::to_owned).collect()
    }
}
