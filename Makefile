.PHONY: check test demo figure
check: ; ./nava check
test: ; ./nava test
demo: ; ./nava demo
# The README's figure: the demo's scores, once they are there.
figure: demo ; cp runs/compare/scores.png docs/scores.png
