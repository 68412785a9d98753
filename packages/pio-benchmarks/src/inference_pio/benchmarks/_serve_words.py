"""Words that are one token each in the vocabularies of most models, at the beginning of a text and behind a space."""

from __future__ import annotations

_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea kid body information back
parent face others level office door health person art war history party result change reason research girl moment
air teacher force education foot boy age policy music market sense nation plan college interest death experience
effect use class control field development role rate heart drug show leader light voice wife mind price report
decision son view relationship town road arm difference value building action model season tax director position
player record paper space ground form event official matter center site project activity star table need court oil
cost industry figure street image phone data picture practice piece land product doctor wall patient worker news
test movie north love support technology step baby computer type attention film tree source organization hair look
window culture brother energy period course summer plant term letter condition choice rule daughter south floor
material population call hospital church risk fire future bank blood sound dog animal bed security glass rock river
stone bridge forest ocean winter spring rain snow wind cloud storm sun moon sky earth metal gold iron wood color red
blue green black white brown yellow bread milk meat fish fruit sugar salt rice wine chair bag box cup plate key lock
chain wheel engine train boat ship plane horse bird cat mouse lion bear wolf snake flower grass leaf root seed farm
castle king artist writer actor song page chapter sentence language speech sign symbol map chart graph square circle
edge top bottom middle front inside outside east west early late quick slow high low long short large small wide
deep heavy strong weak hard soft warm cold dry wet clean clear dark bright quiet sharp smooth round flat full empty
open close rich poor young old new fresh raw simple complex common rare public private local global active major
minor modern human natural physical social legal formal normal special general final total average basic central
single double several certain likely able ready happy fair smart wise rude lazy free safe important possible
necessary perfect famous popular walk run jump fly drive ride hold push pull catch drop lift break build create
design draw write read listen watch feel touch think know learn remember forget want choose agree describe compare
measure count add divide share give take send receive buy sell pay save win play sing cook eat sleep wake wash wear
fix repair attack follow lead join visit travel leave return stay wait begin start stop
"""

WORDS = tuple(_TEXT.split())
"""Common English words, each once."""
