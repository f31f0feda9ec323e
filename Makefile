.PHONY: check test demo
check: ; ./nava check
test: ; ./nava test
demo: ; ./nava demo
