"""Words that are one token each, with the space before them, in the vocabularies of most models."""

from __future__ import annotations

_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea kid body
information back parent face others level office door health person art war history party result change morning
reason research girl guy moment air teacher force education foot boy age policy music market sense nation plan
college interest death experience effect use class control field development role effort rate heart drug show
leader light voice wife police mind price report decision son view relationship town road arm difference value
building action model season society tax director position player record paper space ground form event official
matter center couple site project activity star table need court oil situation cost industry figure street image
phone data picture practice piece land product doctor wall patient worker news test movie north love support
technology step baby computer type attention film tree source organization hair look window culture chance
brother energy period course summer plant opportunity term letter condition choice rule daughter south husband
floor campaign material population call economy hospital church risk fire future bank blood sound dog animal bed
security glass rock river garden stone bridge island forest mountain ocean winter spring rain snow wind cloud
storm sun moon sky earth metal gold silver iron wood cotton paint color red blue green black white brown yellow
bread milk meat fish fruit sugar salt rice coffee tea wine beer dinner lunch kitchen chair desk bag box bottle
cup plate knife key lock chain rope wheel engine train truck boat ship plane horse cow sheep bird cat mouse
rabbit lion bear wolf snake insect flower grass leaf root seed farm village castle king queen prince soldier
captain judge lawyer artist writer singer actor dance song novel poem page chapter sentence language speech sign
symbol map chart graph square circle corner edge top bottom middle front inside outside east west early late
quick slow high low long short large small wide narrow deep heavy strong weak hard soft warm cold dry wet clean
clear dark bright loud quiet sharp smooth round flat full empty open close rich poor young old new fresh raw
simple complex common rare public private local global active major minor modern ancient human natural physical
social legal moral formal normal special general final total average basic central single double several certain
likely able ready willing careful happy sad angry calm brave proud fair honest gentle smart wise funny serious
polite rude lazy busy free safe dangerous useful important possible necessary perfect beautiful strange famous
popular walk run jump climb swim fly drive ride carry hold push pull throw catch drop lift break build create
design draw write read speak listen watch hear feel touch taste smell think know learn teach remember
"""

WORDS = tuple(_TEXT.split())
"""Common English words, each once."""
