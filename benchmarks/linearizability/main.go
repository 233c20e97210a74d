// Checks the history of benchmarks/server_faults.py for linearizability, one branch at a time, with Porcupine
// (https://github.com/anishathalye/porcupine).
//
//	go run . HISTORY.jsonl
//
// A branch is a list of examples, a current version and a number of pending examples. Its learner takes steps that
// no client sees: each learns one pending example and makes a new version current. The specification therefore allows
// any number of such steps before every operation, as far as the answers agree with it. An operation of unknown
// outcome takes effect at any time after its start, also after all others, where nobody sees whether it does. Prints
// one line of JSON per branch; the exit code is 1 if a history is not linearizable, and 2 if it could not be decided in
// time.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is a line of the history.
type operation struct {
	Client    int      `json:"client"`
	Key       string   `json:"key"`
	Role      string   `json:"role"`
	Kind      string   `json:"operation"`
	Status    *int     `json:"status"` // nil if the outcome is unknown
	Start     int64    `json:"start"`
	End       *int64   `json:"end"`
	Processes []string `json:"processes"`
	Arguments struct {
		Text    string `json:"text"`
		Limit   int    `json:"limit"`
		Version int    `json:"version"`
	} `json:"arguments"`
	Answer *struct {
		Number  int      `json:"number"`
		Version int      `json:"version"`
		Pending int      `json:"pending"`
		Texts   []string `json:"texts"`
		// of the operation "versions", the last one: all versions that were restored
		Restored []int `json:"restored"`
	} `json:"answer"`
}

// example is an element of the list of a branch, newest first. Equal lists are the same pointer; see branchSpec.
type example struct {
	text     string
	previous *example
}

// state is that of a branch after its last operation, without later steps of the learner.
type state struct {
	examples   *example
	lastNumber int
	version    int // the current one
	newest     int // the highest version so far
	pending    int // examples that the learner has not decided
}

// branchSpec is the sequential specification of the branches of one role.
type branchSpec struct {
	tracksVersions bool         // false where erasures move the current version
	tracksPending  bool         // false where reading versions and pending examples is not one step
	unclaimed      map[int]bool // restored versions that no answer names; nil if they are unknown
	lists          map[example]*example
}

func (spec *branchSpec) add(list *example, text string) *example {
	element := example{text, list}
	if existing, ok := spec.lists[element]; ok {
		return existing
	}
	spec.lists[element] = &element
	return &element
}

// remove returns a list without a text, and whether it had the text.
func (spec *branchSpec) remove(list *example, text string) (*example, bool) {
	var newer []string
	for element := list; element != nil; element = element.previous {
		if element.text == text {
			list = element.previous
			for i := len(newer) - 1; i >= 0; i-- {
				list = spec.add(list, newer[i])
			}
			return list, true
		}
		newer = append(newer, element.text)
	}
	return list, false
}

// learn returns the state after as many steps of the learner as make a version current.
func learn(s state, version int) []state {
	if version == s.version {
		return []state{s}
	}
	steps := version - s.newest
	if steps < 1 || steps > s.pending {
		return nil
	}
	s.version, s.newest, s.pending = version, version, s.pending-steps
	return []state{s}
}

// change returns the states after any number of steps of the learner and a change of the current version.
// A version below 0 stands for a new one.
func change(s state, version int) []state {
	var states []state
	for steps := 0; steps <= s.pending; steps++ {
		after := s
		after.newest, after.version, after.pending = s.newest+steps, version, 0
		if version < 0 {
			after.newest++
			after.version = after.newest
		}
		if after.version <= after.newest {
			states = append(states, after)
		}
	}
	return states
}

func (spec *branchSpec) step(s state, op *operation) []state {
	isKnown := op.Status != nil
	switch op.Kind {
	case "teach":
		if isKnown && op.Answer.Number <= s.lastNumber {
			return nil
		}
		if isKnown {
			s.lastNumber = op.Answer.Number
		}
		s.examples, s.pending = spec.add(s.examples, op.Arguments.Text), s.pending+1
		return []state{s}
	case "list":
		element := s.examples
		for i := 0; i < op.Arguments.Limit; i++ {
			if (element == nil) != (i >= len(op.Answer.Texts)) || (element != nil && element.text != op.Answer.Texts[i]) {
				return nil
			}
			if element == nil {
				break
			}
			element = element.previous
		}
		return []state{s}
	case "erase":
		after := s
		examples, isPresent := spec.remove(s.examples, op.Arguments.Text)
		after.examples = examples
		if !isKnown {
			return []state{after}
		}
		mayHaveBeenErased := *op.Status == 404 && len(op.Processes) > 1 // an earlier attempt of the same client
		if isPresent != (*op.Status == 200) && !mayHaveBeenErased {
			return nil
		}
		return []state{after}
	}
	if !spec.tracksVersions {
		return []state{s}
	}
	switch op.Kind {
	case "read", "ask":
		states := learn(s, op.Answer.Version)
		if op.Kind == "read" && spec.tracksPending && len(states) > 0 && op.Answer.Pending < states[0].pending {
			return nil
		}
		return states
	case "rollback":
		return change(s, op.Arguments.Version)
	case "restore":
		var states []state
		if !isKnown && !spec.hasUnclaimedAbove(s.newest) {
			states = append(states, s) // it had no effect
		}
		for _, after := range change(s, -1) {
			if isKnown && after.version == op.Answer.Version || !isKnown && spec.mayBeRestored(after.version) {
				states = append(states, after)
			}
		}
		return states
	}
	return []state{s}
}

// mayBeRestored tells whether an upload without an answer may have made this version.
func (spec *branchSpec) mayBeRestored(version int) bool {
	return spec.unclaimed == nil || spec.unclaimed[version]
}

// hasUnclaimedAbove tells whether an upload without an answer has made a version above this one.
func (spec *branchSpec) hasUnclaimedAbove(newest int) bool {
	for version := range spec.unclaimed {
		if version > newest {
			return true
		}
	}
	return false
}

// model adapts a specification to Porcupine.
func (spec *branchSpec) model() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Init: func() []interface{} { return []interface{}{state{}} },
		Step: func(s, input, _ interface{}) []interface{} {
			var states []interface{}
			for _, after := range spec.step(s.(state), input.(*operation)) {
				states = append(states, after)
			}
			return states
		},
		Equal: func(a, b interface{}) bool { return a.(state) == b.(state) },
	}
	return nondeterministic.ToModel()
}

// read returns the operations of each key that say something about its branch.
func read(path string) map[string][]*operation {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	histories := map[string][]*operation{}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		op := &operation{}
		if err := json.Unmarshal(scanner.Bytes(), op); err != nil {
			log.Fatal(err)
		}
		histories[op.Key] = append(histories[op.Key], op)
	}
	if err := scanner.Err(); err != nil {
		log.Fatal(err)
	}
	return histories
}

// findUnclaimed returns the versions that were restored and that no answer names, if the history lists them.
func findUnclaimed(history []*operation) map[int]bool {
	var unclaimed map[int]bool
	for _, op := range history {
		if op.Kind == "versions" && op.Answer != nil {
			unclaimed = map[int]bool{}
			for _, version := range op.Answer.Restored {
				unclaimed[version] = true
			}
		}
	}
	for _, op := range history {
		if op.Kind == "restore" && op.Answer != nil {
			delete(unclaimed, op.Answer.Version)
		}
	}
	return unclaimed
}

// selectOperations returns the operations that took effect or may have. The last list of a history is complete: an
// example of unknown outcome that neither it nor another operation names was not added before.
func selectOperations(history []*operation, unclaimed map[int]bool) []porcupine.Operation {
	isNamed := map[string]bool{}
	for _, op := range history {
		if op.Kind == "list" && op.Answer != nil {
			for _, text := range op.Answer.Texts {
				isNamed[text] = true
			}
		} else if op.Kind == "erase" {
			isNamed[op.Arguments.Text] = true
		}
	}
	var operations []porcupine.Operation
	for _, op := range history {
		isKnown := op.Status != nil
		switch op.Kind {
		case "teach":
			if (isKnown && *op.Status != 200) || (!isKnown && !isNamed[op.Arguments.Text]) {
				continue
			}
		case "erase":
			if isKnown && *op.Status != 200 && *op.Status != 404 {
				continue
			}
		case "rollback", "restore":
			if isKnown && *op.Status != 200 {
				continue
			}
			if op.Kind == "restore" && !isKnown && unclaimed != nil && len(unclaimed) == 0 {
				continue
			}
		case "read", "ask", "list":
			if op.Answer == nil {
				continue
			}
		default:
			continue
		}
		end := int64(math.MaxInt64)
		if op.End != nil {
			end = *op.End
		}
		operations = append(operations, porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Start, Return: end})
	}
	return operations
}

func main() {
	timeout := flag.Duration("timeout", 5*time.Minute, "for each branch")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("name the file of a history")
	}
	histories := read(flag.Arg(0))
	var keys []string
	for key := range histories {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	code := 0
	for _, key := range keys {
		role := histories[key][0].Role
		unclaimed := findUnclaimed(histories[key])
		operations := selectOperations(histories[key], unclaimed)
		if len(operations) == 0 {
			continue
		}
		spec := &branchSpec{role != "eraser", role == "learner", unclaimed, map[example]*example{}}
		numUnknown := 0
		for _, op := range operations {
			if op.Return == math.MaxInt64 {
				numUnknown++
			}
		}
		started := time.Now()
		result := porcupine.CheckOperationsTimeout(spec.model(), operations, *timeout)
		if result == porcupine.Illegal {
			code = 1
		} else if result == porcupine.Unknown && code == 0 {
			code = 2
		}
		line, _ := json.Marshal(map[string]interface{}{
			"key": key, "role": role, "operations": len(operations), "unknown": numUnknown, "result": result,
			"seconds": math.Round(time.Since(started).Seconds()*1000) / 1000,
		})
		fmt.Println(string(line))
	}
	os.Exit(code)
}
